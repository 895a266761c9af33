"""The helpers under the peer's names agree with the peer, and are right where it is not."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils import common_functions as peer_c_f
from pytorch_metric_learning.utils import loss_and_miner_utils as peer_lmu
from torch import Tensor

from pml_fast import reducers
from pml_fast.utils import PairIndices, TripletIndices, logger
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.module_with_records_and_reducer import ModuleWithRecordsAndReducer

CASES = [(0, 3), (1, 3), (2, 1), (9, 1), (13, 4), (20, 20), (31, 6)]


def label_sets() -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches alone, with an equal but separate reference set, and with one of another size."""
    for n, classes in CASES:
        labels = torch.randint(classes, (n,))
        yield labels, None
        yield labels, labels
        yield labels, labels.clone()
        yield labels, torch.randint(classes, (n + 5,))


def random_pairs(n: int, pos: int, neg: int) -> PairIndices:
    return PairIndices(*(torch.randint(n, (k,)) for k in (pos, pos, neg, neg)))


def assert_same(got: object, expected: object) -> None:
    assert len(got) == len(expected)
    for x, y in zip(got, expected):
        assert torch.equal(x, y)
        assert x.dtype == torch.long


# Pairs and triplets


def test_matches_and_diffs_equal_the_peer() -> None:
    for labels, ref in label_sets():
        for got, expected in zip(lmu.get_matches_and_diffs(labels, ref), peer_lmu.get_matches_and_diffs(labels, ref)):
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected)


@pytest.mark.parametrize("block", [1, 50, 1 << 26])
def test_all_pairs_equal_the_peer(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmu, "COMPARISON_BLOCK", block)
    for labels, ref in label_sets():
        got = lmu.get_all_pairs_indices(labels, ref)
        assert_same(got, peer_lmu.get_all_pairs_indices(labels, ref))
        assert isinstance(got, PairIndices)
        assert all(x.is_contiguous() for x in got)


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
def test_all_triplets_equal_the_peer(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmu, "JOIN_BLOCK", block)
    for labels, ref in label_sets():
        expected = peer_lmu.get_all_triplets_indices(labels, ref)
        got = lmu.get_all_triplets_indices(labels, ref)
        assert_same(got, expected)
        assert isinstance(got, TripletIndices)
        matrices = lmu.get_matches_and_diffs(labels, ref)
        assert_same(lmu.get_all_triplets_indices_vectorized_method(*matrices), expected)
        assert_same(lmu.get_all_triplets_indices_loop_method(labels, *matrices), expected)


def test_indices_are_int64_whatever_the_labels() -> None:
    for dtype in (torch.uint8, torch.int32, torch.float32):
        for indices in (
            lmu.get_all_triplets_indices,
            lmu.get_all_pairs_indices,
            lmu.get_random_triplet_indices,
        ):
            assert all(x.dtype == torch.long for x in indices(torch.tensor([3, 3, 4], dtype=dtype)))


@pytest.mark.parametrize("block", [5, 1 << 24])
def test_pairs_join_to_the_peers_triplets(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmu, "JOIN_BLOCK", block)
    for pos, neg in [(0, 0), (0, 4), (4, 0), (1, 1), (25, 40)]:
        pairs, labels = random_pairs(10, pos, neg), torch.zeros(10, dtype=torch.long)
        for given in (pairs, tuple(pairs), list(pairs)):
            assert_same(lmu.convert_to_triplets(given, labels), peer_lmu.convert_to_triplets(given, labels))


def test_a_join_needs_no_anchor_by_anchor_matrix() -> None:
    # A comparison of 200,000 with 200,000 anchors would take 40 GB.
    anchors = torch.randperm(200_000)
    triplets = lmu.convert_to_triplets((anchors, anchors + 1, anchors.flip(0), anchors.flip(0) + 2), anchors)
    assert_same(triplets, (anchors, anchors + 1, anchors + 2))


def test_conversions_pass_on_what_is_already_right() -> None:
    labels = torch.tensor([0, 0, 1])
    triplets, pairs = lmu.get_all_triplets_indices(labels), lmu.get_all_pairs_indices(labels)
    assert lmu.convert_to_triplets(triplets, labels) is triplets
    assert lmu.convert_to_pairs(pairs, labels) is pairs
    assert_same(lmu.convert_to_pairs(triplets, labels), peer_lmu.convert_to_pairs(triplets, labels))
    assert_same(lmu.convert_to_pairs(None, labels), pairs)
    assert_same(lmu.convert_to_triplets(None, labels, t_per_anchor="all"), triplets)
    assert_same(lmu.get_anchors(pairs)[None], peer_lmu.get_anchors(pairs)[None])
    assert lmu.get_anchors(triplets) is triplets.anchor
    assert lmu.pos_pairs_from_tuple(pairs) == pairs[:2]
    assert lmu.neg_pairs_from_tuple(pairs) == pairs[2:]
    with pytest.raises(ValueError, match="t_per_anchor"):
        lmu.convert_to_triplets(None, labels, t_per_anchor="some")
    for function in (lmu.convert_to_triplets, lmu.convert_to_pairs):
        with pytest.raises(ValueError, match="got 2"):
            function((labels, labels), labels)


def test_unique_positive_pairs_equal_the_peer() -> None:
    for labels, _ in label_sets():
        for given in (None, random_pairs(len(labels), 15, 3)) if len(labels) else (None,):
            expected = peer_lmu.convert_to_pos_pairs_with_unique_labels(given, labels)
            assert_same(lmu.convert_to_pos_pairs_with_unique_labels(given, labels), expected)


# Random triplets


def test_random_triplets_are_triplets_and_as_many_as_the_peers() -> None:
    for labels, ref in label_sets():
        for t_per_anchor in (None, 1, 6):
            a, p, n = lmu.get_random_triplet_indices(labels, ref, t_per_anchor=t_per_anchor)
            others = labels if ref is None else ref
            assert (labels[a] == others[p]).all()
            assert (labels[a] != others[n]).all()
            if others is labels:
                assert (a != p).all()
            expected = peer_lmu.get_random_triplet_indices(labels, ref, t_per_anchor=t_per_anchor)[0]
            assert torch.equal(a.sort().values, expected.sort().values)


def test_random_triplets_are_uniform() -> None:
    labels = torch.tensor([0, 1, 0, 1, 2, 0])
    a, p, n = lmu.get_random_triplet_indices(labels, t_per_anchor=20_000)
    every = torch.stack(lmu.get_all_triplets_indices(labels), 1).tolist()
    counts = Counter(zip(a.tolist(), p.tolist(), n.tolist()))
    assert set(counts) == {tuple(t) for t in every}
    per_anchor = Counter(t[0] for t in every)
    for triplet, count in counts.items():
        expected = 20_000 / per_anchor[triplet[0]]
        assert abs(count - expected) < 6 * expected**0.5


@pytest.mark.parametrize("t_per_anchor", [None, 3000])
def test_weighted_negatives_follow_their_weights(t_per_anchor: int | None) -> None:
    labels, ref = torch.tensor([0, 1, 5]), torch.tensor([0] * 4000 + [1, 1, 1])
    weights = torch.zeros(3, len(ref), dtype=torch.float16)
    weights[0, -3:] = torch.tensor([1.0, 3.0, 0.0])
    weights[1, -3:] = 1  # only its own class weighs anything: no negatives, so anchor 1 is left out
    weights[2] = 1  # no positives
    a, p, n = lmu.get_random_triplet_indices(labels, ref, t_per_anchor=t_per_anchor, weights=weights)
    assert len(a) == (t_per_anchor or 4000)
    assert (a == 0).all()
    assert (ref[p] == 0).all()
    share = (n == len(ref) - 2).double().mean()
    assert set(n.tolist()) == {len(ref) - 3, len(ref) - 2}
    assert abs(share - 0.75) < 0.05
    none = lmu.get_random_triplet_indices(labels, ref, weights=weights * 0)
    assert [len(x) for x in none] == [0, 0, 0]


def test_a_generator_repeats_the_draw_and_the_global_one_is_left_alone() -> None:
    labels, state = torch.randint(4, (30,)), torch.get_rng_state()
    weights = torch.ones(30, 30)
    for kwargs in ({}, {"weights": weights}):
        draws = [
            lmu.get_random_triplet_indices(labels, t_per_anchor=5, generator=torch.Generator().manual_seed(seed), **kwargs)
            for seed in (1, 1, 2)
        ]
        assert_same(draws[0], draws[1])
        assert not torch.equal(draws[0].neg, draws[2].neg)
    drawn = lmu.convert_to_triplets(None, labels, t_per_anchor=5, generator=torch.Generator().manual_seed(1))
    assert len(drawn[0]) == len(draws[0].anchor)
    assert torch.equal(state, torch.get_rng_state())


def test_bad_random_triplet_settings_are_refused() -> None:
    labels = torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="t_per_anchor"):
        lmu.get_random_triplet_indices(labels, t_per_anchor=0)
    with pytest.raises(ValueError, match="weights"):
        lmu.get_random_triplet_indices(labels, weights=torch.ones(3, 4))


# Weights, queues, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_weights_equal_the_peer(dtype: torch.dtype) -> None:
    labels = torch.randint(3, (10,))
    empty = tuple(torch.empty(0, dtype=torch.long) for _ in range(4))
    for indices in (None, empty, random_pairs(10, 20, 3), lmu.get_all_triplets_indices(labels)):
        for using_ref in (False, True):
            got, expected = (m.convert_to_weights(indices, labels, dtype, using_ref) for m in (lmu, peer_lmu))
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected)


def test_weights_of_counts_beyond_float16() -> None:
    anchors = torch.cat([torch.zeros(80_000, dtype=torch.long), torch.ones(40_000, dtype=torch.long)])
    weights = lmu.convert_to_weights((anchors,) * 3, torch.zeros(3), torch.float16)
    assert weights.tolist() == [1, 0.5, 0]


@pytest.mark.parametrize("ref_is_subset", [False, True])
@pytest.mark.parametrize("start", [0, 5, 13, 16])
def test_self_comparisons_equal_the_peer(start: int, ref_is_subset: bool) -> None:
    size, batch = 17, 6
    rows = (torch.arange(batch) + start) % size
    a, p = (x.flatten() for x in torch.meshgrid(torch.arange(batch), torch.arange(size), indexing="ij"))
    if ref_is_subset:
        a, p = p, a
    for indices in ((a, p, a.flip(0)), (a, p, p[:4], a[:4])):
        expected = peer_lmu.remove_self_comparisons(indices, rows, size, ref_is_subset)
        assert_same(lmu.remove_self_comparisons(indices, rows, size, ref_is_subset), expected)
        assert len(expected[0]) == len(a) - batch


def test_a_queue_fed_one_sample_at_a_time_drops_it() -> None:
    a, p = torch.tensor([0, 0, 0]), torch.tensor([2, 3, 4])
    assert lmu.remove_self_comparisons((a, p, p), torch.tensor([3]), 5).pos.tolist() == [2, 4]
    assert lmu.remove_self_comparisons((a, p, p), torch.empty(0, dtype=torch.long), 5).pos.tolist() == [
        2,
        3,
        4,
    ]


def test_sizes_are_matched_as_in_the_peer() -> None:
    for p, n in [(3, 3), (2, 7), (7, 2), (1, 5)]:
        p_idx, n_idx = torch.randperm(p), torch.randperm(n)
        assert_same(lmu.matched_size_indices(p_idx, n_idx), peer_lmu.matched_size_indices(p_idx, n_idx))
    with pytest.raises(ValueError, match="empty"):
        lmu.matched_size_indices(torch.arange(3), torch.arange(0))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("add_one", [False, True])
def test_logsumexp_equals_the_peer(add_one: bool, dim: int) -> None:
    x = (50 * torch.randn(6, 8, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(6, 8) > 0.5
    mask[2], mask[:, 3] = False, False
    for keep in (None, mask):
        got, expected = (m.logsumexp(x, keep_mask=keep, add_one=add_one, dim=dim) for m in (lmu, peer_lmu))
        torch.testing.assert_close(got, expected)
        weight = torch.randn_like(got)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, weight)[0] for y in (got, expected)))


def test_meshgrid_equals_the_peer() -> None:
    x, y = torch.zeros(3, 5), torch.zeros(4, 2)
    for dim in (0, 1):
        assert_same(lmu.meshgrid_from_sizes(x, y, dim), peer_lmu.meshgrid_from_sizes(x, y, dim))


# Small functions


def test_tuples_are_shifted_and_joined_as_in_the_peer() -> None:
    triplets, pairs = tuple(torch.randint(9, (3, 4))), random_pairs(9, 3, 0)
    for indices in (triplets, pairs):
        assert_same(c_f.shift_indices_tuple(indices, 9), peer_c_f.shift_indices_tuple(indices, 9))
        joined = c_f.concatenate_indices_tuples(indices, indices)
        assert_same(joined, peer_c_f.concatenate_indices_tuples(indices, indices))
    assert c_f.shift_indices_tuple((triplets[0],), 9) == (triplets[0],)
    with pytest.raises(ValueError, match="got 3 and 4"):
        c_f.concatenate_indices_tuples(triplets, pairs)


def test_the_reference_set_defaults_to_the_batch_itself() -> None:
    x, labels, ref = torch.randn(3, 2), torch.arange(3), torch.randn(5, 2)
    assert c_f.set_ref_emb(x, labels, None, None) == (x, labels)
    assert c_f.set_ref_emb(x, labels, ref, None) == (ref, None)
    got = c_f.set_ref_emb(x, labels, ref, torch.arange(5))
    assert got[0] is ref
    assert got[1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="5 embeddings and 4 labels"):
        c_f.set_ref_emb(x, labels, ref, torch.arange(4))


def test_shapes_are_checked() -> None:
    x = torch.randn(3, 2)
    c_f.check_shapes(x, None)
    c_f.check_shapes(x, torch.arange(3))
    with pytest.raises(ValueError, match="3 embeddings and 2 labels"):
        c_f.check_shapes(x, torch.arange(2))
    with pytest.raises(ValueError, match="1D"):
        c_f.check_shapes(x, torch.zeros(3, 1))


def test_what_a_loss_needs_is_asked_for() -> None:
    x = torch.randn(2, 2)
    for check, good, bad in [
        (c_f.labels_required, (x,), (None,)),
        (c_f.labels_or_indices_tuple_required, (None, (x,)), (None, None)),
        (c_f.labels_not_supported, (None, None), (None, x)),
        (c_f.indices_tuple_not_supported, (None,), ((x,),)),
        (c_f.ref_not_supported, (x, None, x, None), (x, None, x.clone(), None)),
    ]:
        check(*good)
        with pytest.raises(ValueError):
            check(*bad)


def test_the_distance_is_checked() -> None:
    class Owner:
        distance = reducers.ThresholdReducer(low=0)

    c_f.assert_distance_type(Owner(), reducers.BaseReducer, low=0)
    c_f.assert_distance_type(Owner(), [reducers.MeanReducer, reducers.ThresholdReducer])
    with pytest.raises(TypeError, match=r"Owner.*one of MeanReducer, SumReducer, got ThresholdReducer"):
        c_f.assert_distance_type(Owner(), [reducers.MeanReducer, reducers.SumReducer])
    with pytest.raises(ValueError, match=r"Owner requires distance\.low to be 1, got 0"):
        c_f.assert_distance_type(Owner(), low=1)


def test_dtypes_are_left_alone_under_autocast() -> None:
    x = torch.ones(2)
    assert c_f.to_dtype(x, tensor=x.half()).dtype == c_f.to_device(x, x, dtype=torch.float16).dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # The peer asks about the CUDA autocast in some releases of torch and about any in others.
        assert c_f.to_dtype(x, dtype=torch.float16).dtype == peer_c_f.to_dtype(x, dtype=torch.float16).dtype
    with pytest.raises(TypeError, match="device"):
        c_f.to_device(x)


def test_limits_equal_the_peer() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for name in ("pos_inf", "neg_inf", "small_val"):
            assert getattr(c_f, name)(dtype) == getattr(peer_c_f, name)(dtype)


def test_labels_to_indices_equal_the_peer() -> None:
    for labels in (torch.randint(5, (40,)), [3, 1, 3, 2], np.array(["b", "a", "b"])):
        got, expected = c_f.get_labels_to_indices(labels), peer_c_f.get_labels_to_indices(labels)
        assert list(got) == list(expected)
        assert all(np.array_equal(got[k], expected[k]) for k in expected)
    assert c_f.get_labels_to_indices([]) == {}


def test_random_choice_repeats_only_when_it_must() -> None:
    data = np.arange(10, 20)
    for generator in (None, np.random.default_rng(0), torch.Generator()):
        assert set(c_f.safe_random_choice(data, 10, generator)) == set(data)
        more = c_f.safe_random_choice(data, 25, generator)
        assert len(more) == 25
        assert set(more) <= set(data)


def test_random_choice_draws_what_the_peer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (3, 30):
        for module in (c_f, peer_c_f):
            monkeypatch.setattr(module, "NUMPY_RANDOM", np.random.RandomState(4))
        got, expected = (module.safe_random_choice([7, 8, 9, 1], size) for module in (c_f, peer_c_f))
        assert got.tolist() == expected.tolist()


def test_label_mapping_equals_the_peer() -> None:
    two_levels = np.array([[10, 3], [40, 3], [20, 5], [10, 9]])
    for labels, level in [
        (two_levels[:, 0], 0),
        (two_levels, 0),
        (two_levels, 1),
        (two_levels, [0, 1]),
        (two_levels, "all"),
    ]:
        results = [m.process_label(labels, level, m.LabelMapper(True, labels).map) for m in (c_f, peer_c_f)]
        assert torch.equal(*results)
    assert c_f.LabelMapper().map(two_levels, 0) is two_levels
    for bad, match in [(2, "below 2"), ("some", "some")]:
        with pytest.raises(ValueError, match=match):
            c_f.get_hierarchy_label(two_levels, bad)
    with pytest.raises(ValueError, match="dataset_labels"):
        c_f.LabelMapper(True)
    with pytest.raises(ValueError, match="duplicates"):
        c_f.make_label_to_rank_dict([1, 1])


def test_tensor_helpers_equal_the_peer() -> None:
    x = torch.randn(4, 3, 2)
    for dim in (1, 2):
        mask = x > -1
        assert torch.equal(c_f.torch_all_from_dim_to_end(mask, dim), peer_c_f.torch_all_from_dim_to_end(mask, dim))
    torch.testing.assert_close(c_f.torch_standard_scaler(x[0]), peer_c_f.torch_standard_scaler(x[0]))
    assert c_f.torch_arange_from_size(x, 1).tolist() == [0, 1, 2]
    assert c_f.exclude("abc", "b") == ["a", "c"]
    assert c_f.append_map(["a"], "_x") == ["a_x"]
    weight = torch.empty(3)
    c_f.TorchInitWrapper(torch.nn.init.constant_, val=2.5)(weight)
    assert weight.tolist() == [2.5] * 3


def test_the_logger_can_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGGER", "LOGGER_NAME"):
        monkeypatch.setattr(c_f, name, getattr(c_f, name))
    monkeypatch.setattr(logger, "name", logger.name)
    c_f.set_logger_name("renamed")
    assert c_f.LOGGER is logging.getLogger("renamed") is logger.current()
    assert c_f.LOGGER_NAME == "renamed"


# Modules with records and reducers


class TwoLosses(ModuleWithRecordsAndReducer):
    def sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]

    def get_default_reducer(self) -> torch.nn.Module:
        return reducers.AvgNonZeroReducer()


def test_each_sub_loss_gets_its_own_reducer() -> None:
    given = reducers.SumReducer()
    for module, kind in ((TwoLosses(), reducers.AvgNonZeroReducer), (TwoLosses(given), reducers.SumReducer)):
        assert type(module.reducer) is reducers.MultipleReducers
        held = module.reducer.reducers
        assert list(held) == ["pos_loss", "neg_loss"]
        assert {type(x) for x in held.values()} == {kind}
        assert held["pos_loss"] is not held["neg_loss"]
        assert given not in held.values()


def test_whole_reducers_are_taken_as_they_are() -> None:
    for reducer in (reducers.DoNothingReducer(), reducers.MultipleReducers({})):
        assert TwoLosses(reducer).reducer is reducer
    given = reducers.SumReducer()
    single = ModuleWithRecordsAndReducer(given)
    assert type(single.reducer) is reducers.SumReducer
    assert single.reducer is not given
    assert type(ModuleWithRecordsAndReducer().reducer) is reducers.MeanReducer


def test_statistics_are_listed_only_where_they_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleWithRecordsAndReducer(collect_stats=True)
    module.add_to_recordable_attributes(name="margin")
    module.add_to_recordable_attributes(list_of_names=["seen", "kept"], is_stat=True)
    assert (module._record_these, module._record_these_stats) == (["margin"], ["seen", "kept"])
    module.seen, module.margin = 5, 7
    module.reset_stats()
    assert (module.seen, module.margin) == (0, 7)
    silent = ModuleWithRecordsAndReducer()
    silent.add_to_recordable_attributes(name="seen", is_stat=True)
    assert not hasattr(silent, "seen")
    monkeypatch.setattr(c_f, "COLLECT_STATS", True)
    assert ModuleWithRecordsAndReducer().collect_stats
    assert not silent.collect_stats
    assert c_f.list_of_recordable_attributes_list_names() == ["_record_these", "_record_these_stats"]
