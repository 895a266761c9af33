// The instruction set that the kernels run with: found at run time, never taken from the machine that builds.
//
// Every kernel source in csrc/cpu is compiled once for each set, with PML_FAST_ISA naming it, and puts its
// code in
//
//   namespace pml_fast { namespace PML_FAST_ISA { ... } }
//
// A header declares a kernel for all sets at once with PML_FAST_FOR_EACH_ISA, and the bindings call the one
// of the active set with PML_FAST_DISPATCH.
#pragma once

#include <string>
#include <vector>

namespace pml_fast {

// Ordered: each set contains those before it.
enum class Isa { baseline, avx2, avx512 };

const char* isa_name(Isa isa);

// Throws std::invalid_argument on an unknown name. `argument` is what the message calls it.
Isa parse_isa(const std::string& name, const char* argument);

// Those this module was compiled for, narrowest first.
std::vector<Isa> compiled_isas();

// Whether the processor and the operating system of this machine can run it.
bool machine_supports(Isa isa);

// The set in use: the last one given to set_isa, else the environment variable PML_FAST_ISA, else the widest
// that was compiled and that this machine supports. Throws std::invalid_argument when the variable asks for
// another.
Isa active_isa();

// Throws std::invalid_argument where the set was not compiled or the machine cannot run it.
void set_isa(Isa isa);

}  // namespace pml_fast

#ifdef PML_FAST_X86_ISAS

  // PML_FAST_FOR_EACH_ISA(void f(int);) declares baseline::f, avx2::f and avx512::f. Use it inside namespace
  // pml_fast.
  #define PML_FAST_FOR_EACH_ISA(...) \
    namespace baseline {             \
    __VA_ARGS__                      \
    }                                \
    namespace avx2 {                 \
    __VA_ARGS__                      \
    }                                \
    namespace avx512 {               \
    __VA_ARGS__                      \
    }

  // PML_FAST_DISPATCH(f(1)) calls f of the active set and is an expression of its result.
  #define PML_FAST_DISPATCH(...)                    \
    [&] {                                           \
      switch (::pml_fast::active_isa()) {           \
        case ::pml_fast::Isa::avx512:               \
          return ::pml_fast::avx512::__VA_ARGS__;   \
        case ::pml_fast::Isa::avx2:                 \
          return ::pml_fast::avx2::__VA_ARGS__;     \
        default:                                    \
          return ::pml_fast::baseline::__VA_ARGS__; \
      }                                             \
    }()

#else

  #define PML_FAST_FOR_EACH_ISA(...) \
    namespace baseline {             \
    __VA_ARGS__                      \
    }

  #define PML_FAST_DISPATCH(...)                \
    [&] {                                       \
      ::pml_fast::active_isa();                 \
      return ::pml_fast::baseline::__VA_ARGS__; \
    }()

#endif
