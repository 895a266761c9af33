"""A generator of hard negatives that trains with the metric."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.losses import TripletMarginLoss
from pml_fast.miners import EmbeddingsAlreadyPackagedAsTriplets
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu

from .train_with_classifier import TrainWithClassifier


class NegativeLpDistance(LpDistance):
    """The distance with its sign turned: the triplet loss of it wants negatives to be near."""

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The negative distances of all pairs."""
        return -super().compute_mat(query_emb, ref_emb)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The negative distances of rows, two by two."""
        return -super().pairwise_distance(query_emb, ref_emb)


class DeepAdversarialMetricLearning(TrainWithClassifier):
    """`models["generator"]` makes a negative `[N, D]` of the trunk's output for anchor, positive and negative `[N, 3 D]`:
    Duan et al., Deep Adversarial Metric Learning (CVPR 2018).

    The losses are those of TrainWithClassifier, "synth_loss" on the synthetic triplets, and for the generator
    "g_adv_loss" (a TripletMarginLoss, turned around here), "g_hard_loss" (near the anchor), "g_reg_loss" (near the
    real negative).

    Args:
        metric_alone_epochs: first epochs without the generator.
        g_alone_epochs: epochs after those in which the generator alone is trained.
        g_triplets_per_anchor: random triplets an anchor to make negatives for; "all" for every one.
    """

    def __init__(
        self, metric_alone_epochs: int = 0, g_alone_epochs: int = 0, g_triplets_per_anchor: Any = 100, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.original_loss_weights = copy.deepcopy(self.loss_weights)
        self.metric_alone_epochs = metric_alone_epochs
        self.g_alone_epochs = g_alone_epochs
        adversary = self.loss_funcs["g_adv_loss"]
        if not isinstance(adversary, TripletMarginLoss):
            raise TypeError(f'loss_funcs["g_adv_loss"] must be a TripletMarginLoss, got {type(adversary).__name__}')
        adversary.margin *= -1
        adversary.distance = NegativeLpDistance()
        self.g_triplets_per_anchor = g_triplets_per_anchor

    def custom_setup(self) -> None:
        """The miner of the synthetic triplets, and the generator's own losses."""
        self.mining_funcs["synth_packaged_as_triplets"] = EmbeddingsAlreadyPackagedAsTriplets()
        self.loss_names += ["g_hard_loss", "g_reg_loss"]

    def encode(self, data: Any) -> Tensor:
        """The trunk alone: the embedder takes synthetic rows too."""
        output: Tensor = self.get_trunk_output(data)
        return output

    def encoders(self) -> list[torch.nn.Module]:
        """The trunk."""
        return [self.models["trunk"]]

    def calculate_loss(self, curr_batch: Any) -> None:
        """The losses of the phase that the epoch is in."""
        data, labels = curr_batch
        penultimate_embeddings = self.embed(data)
        if self.do_metric:
            embeddings = self.get_final_embeddings(penultimate_embeddings)
            indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
            self.losses["metric_loss"] = self.loss_funcs["metric_loss"](embeddings, labels, indices_tuple)
            logits = self.maybe_get_logits(embeddings)
            self.losses["classifier_loss"] = self.maybe_get_classifier_loss(logits, labels)
        if self.do_adv:
            self.calculate_synth_loss(penultimate_embeddings, labels)

    def update_loss_weights(self) -> None:
        """No weight for the losses that the phase leaves out."""
        self.do_metric_alone = self.epoch <= self.metric_alone_epochs
        self.do_adv_alone = self.metric_alone_epochs < self.epoch <= self.metric_alone_epochs + self.g_alone_epochs
        self.do_both = not self.do_adv_alone and not self.do_metric_alone
        self.do_adv = self.do_adv_alone or self.do_both
        self.do_metric = self.do_metric_alone or self.do_both
        weighed: set[str] = set()
        if self.do_adv:
            weighed |= {"g_hard_loss", "g_reg_loss", "g_adv_loss"}
        if self.do_metric:
            weighed |= {"metric_loss", "classifier_loss"}
        if self.do_both:
            weighed |= {"synth_loss"}
        for name in self.loss_weights:
            self.loss_weights[name] = self.original_loss_weights[name] if name in weighed else 0
        self.maybe_exclude_networks_from_gradient()

    def maybe_exclude_networks_from_gradient(self) -> None:
        """Freeze the models that the phase does not train."""
        self.set_to_train()
        frozen: tuple[str, ...] = ()
        if self.do_adv_alone:
            frozen = ("trunk", "classifier")
        elif self.do_metric_alone:
            frozen = ("generator",)
        for name, model in self.models.items():
            c_f.set_requires_grad(model, requires_grad=name not in frozen)
            if name in frozen:
                model.eval()

    def optimizers_to_step(self) -> list[str]:
        """Those of the models that the phase trains."""
        trained: list[str] = []
        if self.do_metric:
            trained += ["trunk_optimizer", "embedder_optimizer", "classifier_optimizer"]
        if self.do_adv:
            trained += ["generator_optimizer"]
        return [name for name in self.optimizers if name in trained]

    def calculate_synth_loss(self, penultimate_embeddings: Tensor, labels: Tensor) -> None:
        """The losses of triplets whose negative is the generator's."""
        a, p, n = lmu.convert_to_triplets(None, labels, t_per_anchor=self.g_triplets_per_anchor)
        anchors, positives, negatives = (penultimate_embeddings[k] for k in (a, p, n))
        synthetic = self.models["generator"](torch.cat([anchors, positives, negatives], dim=1).to(self.data_device))
        embeddings = self.get_final_embeddings(c_f.unslice_by_n([anchors, positives, synthetic]))
        labels = torch.stack([labels[k] for k in (a, p, n)], dim=1).flatten()
        indices_tuple = self.mining_funcs["synth_packaged_as_triplets"](embeddings, labels)
        if self.do_both:
            self.losses["synth_loss"] = self.loss_funcs["synth_loss"](embeddings, labels, indices_tuple)
        self.losses["g_adv_loss"] = self.loss_funcs["g_adv_loss"](embeddings, labels, indices_tuple)
        made, anchor, real = (torch.nn.functional.normalize(x, dim=1) for x in (synthetic, anchors, negatives))
        self.losses["g_hard_loss"] = torch.nn.functional.mse_loss(made, anchor)
        self.losses["g_reg_loss"] = torch.nn.functional.mse_loss(made, real)

    def modify_schema(self) -> None:
        """The generator and the losses of the synthetic triplets."""
        super().modify_schema()
        self.schema["models"].keys += ["generator"]
        self.schema["models"].essential += ["generator"]
        self.schema["loss_funcs"].keys += ["synth_loss", "g_adv_loss"]
        self.schema["loss_funcs"].essential += ["synth_loss", "g_adv_loss"]
        self.schema["mining_funcs"].keys += ["synth_packaged_as_triplets"]
