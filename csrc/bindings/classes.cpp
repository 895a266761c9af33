#include "cpu/classes.h"

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings.h"
#include "cpu/small_classes.h"

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

SmallClasses small_classes(Address x, int64_t n, int64_t d, Address weights, int64_t classes, int64_t weight_step,
                           int64_t feature_step, Address target, Address bias, bool unit_rows, bool unit_weights, bool squared,
                           int threads) {
  return {at<void>(x),
          n,
          d,
          at<void>(weights),
          classes,
          weight_step,
          feature_step,
          at<int64_t>(target),
          at<void>(bias),
          unit_rows,
          unit_weights,
          squared,
          threads};
}

}  // namespace

void bind_classes(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<ClassMaths>(m, "ClassMaths");
  py::class_<ClassBlock>(m, "ClassBlock");
  m.def("class_maths", &maths);
  m.def("class_block", &block);
  py::class_<SmallClasses>(m, "SmallClasses");
  m.def("small_classes", &small_classes);
  m.def(
      "small_class_scores",
      [](const SmallClasses& batch, const ClassMaths& how, Address state, Address others, Address own, Address norms,
         bool is_double) {
        PML_FAST_DISPATCH(
            small_class_scores(batch, how, at<void>(state), at<void>(others), at<void>(own), at<void>(norms), is_double));
      },
      Release());
  m.def(
      "small_class_grads",
      [](const SmallClasses& batch, const ClassMaths& how, Address state, Address fold, Address weight, Address own,
         Address norms, Address dx, Address dw, int64_t weight_step, int64_t feature_step, bool is_double) {
        const ClassSlopes slopes{at<void>(fold), at<void>(weight), at<void>(own)};
        PML_FAST_DISPATCH(small_class_grads(batch, how, at<void>(state), slopes, at<void>(norms), at<void>(dx), at<void>(dw),
                                            weight_step, feature_step, is_double));
      },
      Release());
  m.def(
      "class_norms",
      [](Address weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step, Address norms, int threads,
         bool is_double) {
        PML_FAST_DISPATCH(class_norms(at<void>(weights), count, d, count_step, d_step, at<void>(norms), threads, is_double));
      },
      Release());
  m.def(
      "make_unit_weights",
      [](Address weights, int64_t count, int64_t d, int64_t count_step, int64_t d_step, double least, double rounding,
         int threads, bool is_double) {
        PML_FAST_DISPATCH(
            make_unit_weights(at<void>(weights), count, d, count_step, d_step, least, rounding, threads, is_double));
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
