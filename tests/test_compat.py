"""compat.install() puts pml_fast in the place of the peer; each case runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def run(code: str) -> None:
    """Run `code` after the imports that the cases share; its assertions are the test."""
    setup = "import sys\nfrom pml_fast import compat\n"
    done = subprocess.run([sys.executable, "-c", setup + textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_and_modules_are_ours() -> None:
    run(
        """
        compat.install()
        import pytorch_metric_learning
        import pytorch_metric_learning.reducers.mean_reducer as module
        from pytorch_metric_learning import reducers, samplers
        from pytorch_metric_learning.utils import common_functions as c_f, loss_and_miner_utils as lmu
        from pytorch_metric_learning.utils.module_with_records import ModuleWithRecords
        import pml_fast.reducers, pml_fast.samplers
        from pml_fast.utils import common_functions, loss_and_miner_utils, module_with_records

        assert pytorch_metric_learning.__version__ == "2.9.0" != pml_fast.__version__
        assert reducers.MeanReducer is module.MeanReducer is pml_fast.reducers.MeanReducer
        assert samplers.MPerClassSampler is pml_fast.samplers.MPerClassSampler
        assert ModuleWithRecords is module_with_records.ModuleWithRecords
        assert lmu.logsumexp is loss_and_miner_utils.logsumexp
        assert c_f.pos_inf is common_functions.pos_inf
        assert "MeanReducer" in dir(reducers)
        """
    )


def test_importing_the_top_alone_gives_its_modules() -> None:
    run(
        """
        compat.install()
        import pytorch_metric_learning as pml
        assert pml.reducers.SumReducer.__module__ == "pml_fast.reducers.sum_reducer"
        namespace = {}
        exec("from pytorch_metric_learning.reducers import *", namespace)
        assert namespace["SumReducer"] is pml.reducers.SumReducer
        """
    )


def test_settings_reach_our_modules() -> None:
    run(
        """
        compat.install()
        from pytorch_metric_learning.utils import common_functions as c_f
        from pytorch_metric_learning.reducers import MeanReducer
        c_f.COLLECT_STATS = True
        import pml_fast.utils.common_functions as ours
        assert ours.COLLECT_STATS and MeanReducer().collect_stats
        c_f.extra = 1
        del c_f.extra
        assert not hasattr(ours, "extra")
        """
    )


def test_a_missing_name_says_so() -> None:
    run(
        """
        compat.install()
        import pytorch_metric_learning as pml
        for statement, kind in {
            "import pytorch_metric_learning.teleporters": ModuleNotFoundError,
            "from pytorch_metric_learning import teleporters": ImportError,
            "from pytorch_metric_learning.reducers import TeleportReducer": ImportError,
            "from pytorch_metric_learning.utils.common_functions import teleport": ImportError,
            "pml.teleporters": AttributeError,
            "pml.reducers.TeleportReducer": AttributeError,
        }.items():
            try:
                exec(statement)
            except kind as error:
                assert "pml_fast has no" in str(error) and "eleport" in str(error), (statement, error)
            else:
                raise AssertionError(statement)
        assert not hasattr(pml.reducers, "TeleportReducer")
        """
    )


def test_install_twice_is_install_once_and_uninstall_undoes_it() -> None:
    run(
        """
        finders = len(sys.meta_path)
        compat.install()
        compat.install()
        assert compat.is_installed() and len(sys.meta_path) == finders + 1
        from pytorch_metric_learning.reducers import MeanReducer as ours
        compat.uninstall()
        assert not compat.is_installed() and len(sys.meta_path) == finders
        from pytorch_metric_learning.reducers import MeanReducer as real
        import pml_fast.reducers
        assert real.__module__ == "pytorch_metric_learning.reducers.mean_reducer"
        assert ours is pml_fast.reducers.MeanReducer is not real
        """
    )


def test_a_real_one_imported_before_is_refused() -> None:
    run(
        """
        import pytorch_metric_learning.reducers
        try:
            compat.install()
        except RuntimeError as error:
            assert "before the first import" in str(error)
        else:
            raise AssertionError("install must refuse")
        assert not compat.is_installed()
        """
    )


def test_a_whole_program_runs_on_us() -> None:
    run(
        """
        compat.install()
        import torch
        from pytorch_metric_learning import reducers
        from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

        class Mine(reducers.BaseReducer):
            def triplet_reduction(self, losses, loss_indices, embeddings, labels):
                return losses.max()

        labels = torch.tensor([0, 0, 1])
        triplets = lmu.get_all_triplets_indices(labels)
        info = {"losses": torch.tensor([1.0, 4.0]), "indices": triplets, "reduction_type": "triplet"}
        assert Mine()({"loss": info}, torch.randn(3, 2), labels) == 4
        aliases = {name: module for name, module in sys.modules.items() if name.startswith(compat.PEER)}
        assert aliases and all("pml_fast" in module.__file__ for module in aliases.values())
        """
    )
