#include "cpu/classes.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings.h"

namespace py = pybind11;

namespace pml_fast {
namespace {

ClassMaths maths(const std::string& pool, const std::string& fold, int64_t centers, double scale, double sharpness) {
  ClassMaths made{Pool::kSingle, ClassFold::kRowLse, centers, scale, sharpness};
  if (pool == "max")
    made.pool = Pool::kMax;
  else if (pool == "soft")
    made.pool = Pool::kSoft;
  else if (pool != "single")
    throw std::invalid_argument("pool must be single, max or soft, got '" + pool + "'");
  if (fold == "class_lse")
    made.fold = ClassFold::kClassLse;
  else if (fold == "row_squares")
    made.fold = ClassFold::kRowSquares;
  else if (fold != "row_lse")
    throw std::invalid_argument("fold must be row_lse, class_lse or row_squares, got '" + fold + "'");
  return made;
}

ClassBlock block(Address products, int64_t ld, int64_t rows, int64_t first, int64_t classes, Address inverse, Address square,
                 Address lift, Address target, Address bias, int threads) {
  return {at<void>(products),
          ld,
          rows,
          first,
          classes,
          at<void>(inverse),
          at<void>(square),
          at<void>(lift),
          at<int64_t>(target),
          at<void>(bias),
          threads};
}

}  // namespace

void bind_classes(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<ClassMaths>(m, "ClassMaths");
  py::class_<ClassBlock>(m, "ClassBlock");
  m.def("class_maths", &maths);
  m.def("class_block", &block);
  m.def(
      "class_norms",
      [](Address weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step, Address norms, int threads,
         bool is_double) {
        PML_FAST_DISPATCH(class_norms(at<void>(weights), count, d, count_step, d_step, at<void>(norms), threads, is_double));
      },
      Release());
  m.def(
      "fold_classes",
      [](const ClassMaths& how, const ClassBlock& part, Address top, Address sum, Address own, bool is_double) {
        const ClassState state{at<void>(top), at<double>(sum)};
        PML_FAST_DISPATCH(fold_classes(how, part, state, at<void>(own), is_double));
      },
      Release());
  m.def(
      "class_coefficients",
      [](const ClassMaths& how, const ClassBlock& part, Address fold, Address weight, Address own, Address out, int64_t ld_out,
         Address along, Address lifted, bool is_double) {
        const ClassSlopes slopes{at<void>(fold), at<void>(weight), at<void>(own)};
        PML_FAST_DISPATCH(
            class_coefficients(how, part, slopes, at<void>(out), ld_out, at<void>(along), at<void>(lifted), is_double));
      },
      Release());
}

}  // namespace pml_fast
