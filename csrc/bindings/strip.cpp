#include "cpu/strip.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

std::unique_ptr<StripEngine> make(const PairLayout& g, const std::string& spec, const std::vector<double>& params, double sign,
                                  const std::pair<double, double>& limits, bool is_double) {
  return PML_FAST_DISPATCH(make_strip_engine(spec, params, sign, open_intervals({limits})[0], g, is_double));
}

}  // namespace

void bind_strip(py::module_& m) {
  m.def("strip_engine", &make);
  py::class_<StripEngine>(m, "StripEngine")
      .def(
          "run",
          [](StripEngine& e, Address products, int64_t ld, int64_t i0, int64_t i1, Address value, Address there, Address kept,
             Address own, Address w, bool gradients) {
            const StripRows rows{at<void>(value), at<void>(there), at<void>(kept), at<void>(own), at<void>(w), gradients};
            return e.run(at<void>(products), ld, i0, i1, rows);
          },
          py::call_guard<py::gil_scoped_release>())
      .def("common_factor", [](const StripEngine& e, Address there, Address kept, Address w) -> std::optional<double> {
        double factor = 0;
        const bool one = e.common_factor({nullptr, at<void>(there), at<void>(kept), nullptr, at<void>(w), true}, factor);
        return one ? std::optional<double>(factor) : std::nullopt;
      });
}

}  // namespace pml_fast
