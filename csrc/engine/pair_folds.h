// What a sweep folds over an anchor's negatives: one pair's contribution to the row's state, and its slope once the row is
// finished.
//
// A fold keeps kState sums a row. eval() is the dear part of a pair, computed once where both of its rows share it; part<k>()
// is what it adds to sum k. In the last sweep share() is one role's part of dL/dscore, given the row's kBack numbers, and
// factor() what both roles have in common. `level` is a row's own number: what logits are reduced by before their exponential,
// or the boundary of the row's hinge.
#pragma once

#include "limits.h"
#include "math.h"

namespace pml_fast {
namespace PML_FAST_ISA {

// Whether a pair's loss is counted. Written so that a NaN is, and is seen.
template <typename T>
bool within(T loss, T low, T high) {
  return !((loss <= low) | (loss >= high));
}

// Sum of exp(logit - level), logit = a s + b.
template <typename T>
struct AffineLogit {
  static constexpr int kState = 1, kBack = 1;
  T a, b;
  T eval(T s, T level) const { return exp_of(a * s + b - level); }
  template <int>
  T part(T, T e) const {
    return e;
  }
  T share(T, T e, T back, T) const { return back * e; }
  T factor(T) const { return a; }
};

// Circle loss: logit = gamma relu(s + m) (s - m); the relu is a constant to the gradient.
template <typename T>
struct CircleLogit {
  static constexpr int kState = 1, kBack = 1;
  T gamma, m;
  T eval(T s, T level) const { return exp_of(gamma * relu(s + m) * (s - m) - level); }
  template <int>
  T part(T, T e) const {
    return e;
  }
  T share(T, T e, T back, T) const { return back * e; }
  T factor(T s) const { return gamma * relu(s + m); }
};

// Sum and number of relu(a (s - at - level) + b), counting only losses inside (low, high).
template <typename T>
struct HingeFold {
  static constexpr int kState = 2, kBack = 1;
  T a, at, b, low, high;
  T eval(T s, T level) const { return relu(a * (s - at - level) + b); }
  template <int K>
  T part(T, T loss) const {
    return within(loss, low, high) ? (K == 0 ? loss : T(1)) : T(0);
  }
  T share(T, T loss, T back, T) const { return (within(loss, low, high) & !(loss <= T(0))) ? back : T(0); }
  T factor(T) const { return a; }
};

// Sum and number of scale x with x = a s + b, over the pairs with x >= 0: others have no loss.
template <typename T>
struct RampFold {
  static constexpr int kState = 2, kBack = 1;
  T a, b, scale, low, high;
  T eval(T s, T) const { return a * s + b; }
  bool there(T x) const { return !(x < T(0)) & within(scale * x, low, high); }
  template <int K>
  T part(T, T x) const {
    return there(x) ? (K == 0 ? scale * x : T(1)) : T(0);
  }
  T share(T, T x, T back, T) const { return there(x) ? back : T(0); }
  T factor(T) const { return a * scale; }
};

// Sum of softplus(a s + b).
template <typename T>
struct SoftplusFold {
  static constexpr int kState = 1, kBack = 1;
  T a, b;
  T eval(T s, T) const { return a * s + b; }
  template <int>
  T part(T, T logit) const {
    return softplus_of(logit);
  }
  T share(T, T logit, T back, T) const { return back / (T(1) + exp_of(-logit)); }
  T factor(T) const { return a; }
};

// Sums of w, of w x and of 1, with x = alpha - s and w = exp(t x), over the pairs with x > 0 and s > 0; the last counts all.
template <typename T>
struct WeightedFold {
  static constexpr int kState = 3, kBack = 2;
  T alpha, t;
  T eval(T s, T) const {
    const T x = alpha - s;
    return ((x <= T(0)) | (s <= T(0))) ? T(0) : exp_of(t * x);
  }
  template <int K>
  T part(T s, T w) const {
    return K == 0 ? w : K == 1 ? (w == T(0) ? T(0) : w * (alpha - s)) : T(1);
  }
  T share(T s, T w, T back, T slope) const { return w == T(0) ? T(0) : w * (back + slope * (alpha - s)); }
  T factor(T) const { return T(-1); }
};

// Sum of the scores, and how many there are.
template <typename T>
struct ScoreFold {
  static constexpr int kState = 2, kBack = 1;
  T eval(T s, T) const { return s; }
  template <int K>
  T part(T, T s) const {
    return K == 0 ? s : T(1);
  }
};

// Sum of relu(a s + b)^2, of relu(a s + b), and number, inside (low, high); what flows back to the mean of all scores is the
// same for each of them.
template <typename T>
struct SquareFold {
  static constexpr int kState = 3, kBack = 2;
  T a, b, low, high;
  T eval(T s, T) const { return relu(a * s + b); }
  bool kept(T beyond) const { return within(beyond * beyond, low, high); }
  template <int K>
  T part(T, T beyond) const {
    return kept(beyond) ? (K == 0 ? beyond * beyond : K == 1 ? beyond : T(1)) : T(0);
  }
  T share(T, T beyond, T back, T mean) const { return (kept(beyond) ? back * beyond : T(0)) + mean; }
  T factor(T) const { return T(1); }
};

}  // namespace PML_FAST_ISA
}  // namespace pml_fast
