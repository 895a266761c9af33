#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#ifdef PML_FAST_X86_ISAS
  #include <cpuid.h>
#endif

namespace pml_fast {
namespace {

constexpr int kUnset = -1;
std::atomic<int> g_active{kUnset};

#ifdef PML_FAST_X86_ISAS
// Not every supported compiler knows __builtin_cpu_supports("f16c").
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool is_compiled(Isa isa) {
  for (Isa candidate : compiled_isas()) {
    if (candidate == isa) return true;
  }
  return false;
}

void require_runnable(Isa isa, const char* argument) {
  const std::string name = isa_name(isa);
  if (!is_compiled(isa)) {
    throw std::invalid_argument(std::string(argument) + "=" + name +
                                ": this build of pml_fast holds no kernels for it; see compiled_isas()");
  }
  if (!machine_supports(isa)) {
    throw std::invalid_argument(std::string(argument) + "=" + name +
                                ": this machine cannot run it; unset it to use the widest that it can");
  }
}

Isa widest_runnable() {
  Isa best = Isa::baseline;
  for (Isa isa : compiled_isas()) {
    if (machine_supports(isa)) best = isa;
  }
  return best;
}

Isa choose() {
  const char* asked_for = std::getenv("PML_FAST_ISA");
  if (asked_for == nullptr || *asked_for == '\0') return widest_runnable();
  const Isa isa = parse_isa(asked_for, "PML_FAST_ISA");
  require_runnable(isa, "PML_FAST_ISA");
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

Isa parse_isa(const std::string& name, const char* argument) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument(std::string(argument) + " must be baseline, avx2 or avx512, got '" + name + "'");
}

std::vector<Isa> compiled_isas() {
#ifdef PML_FAST_X86_ISAS
  return {Isa::baseline, Isa::avx2, Isa::avx512};
#else
  return {Isa::baseline};
#endif
}

bool machine_supports(Isa isa) {
  if (isa == Isa::baseline) return true;
#ifdef PML_FAST_X86_ISAS
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa active_isa() {
  const int current = g_active.load(std::memory_order_relaxed);
  if (current != kUnset) return static_cast<Isa>(current);
  // compare_exchange: a set_isa() on another thread in the meantime wins over what was found here.
  int expected = kUnset;
  const Isa chosen = choose();
  if (g_active.compare_exchange_strong(expected, static_cast<int>(chosen))) return chosen;
  return static_cast<Isa>(expected);
}

void set_isa(Isa isa) {
  require_runnable(isa, "isa");
  g_active.store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace pml_fast
