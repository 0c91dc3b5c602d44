"""Beside the adversarial-robustness-toolbox: its black-box attack on the loss, on the same victim and samples."""

import numpy as np
import pytest

from cloister.attacks import metrics, signals

pytest.importorskip("art.attacks.inference.membership_inference", reason="adversarial-robustness-toolbox")


@pytest.fixture(scope="module")
def victim(run):
    """The run's victim as the toolbox sees one: inputs are places, answers are looked up."""
    import torch
    from art.estimators.classification import PyTorchClassifier

    class Answers(torch.nn.Module):
        def forward(self, places):
            return torch.from_numpy(run.logits).float()[places[:, 0].long()]

    return PyTorchClassifier(
        Answers(), loss=torch.nn.CrossEntropyLoss(reduction="none"), input_shape=(1,), nb_classes=10, device_type="cpu"
    )


def test_attack_on_the_loss_is_within_its_sampling_error_of_ours(run, victim):
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox

    places = np.random.default_rng(0).permutation(len(run.labels))
    seen, judged = places[: len(places) // 2], places[len(places) // 2 :]

    def rows(chosen, member):
        own = chosen[run.is_member[chosen] == member]
        return own[:, None].astype(np.float32), run.labels[own]

    theirs = MembershipInferenceBlackBox(victim, input_type="loss", attack_model_type="lr")
    theirs.fit(*rows(seen, True), *rows(seen, False))
    predicted = theirs.infer(judged[:, None].astype(np.float32), run.labels[judged], probabilities=True)[:, 0]
    ours = signals.score("loss", run.logits, run.labels)[judged]
    difference = metrics.compare(ours, predicted.astype(np.float64), run.is_member[judged], fprs=()).auc
    assert metrics.evaluate(ours, run.is_member[judged], fprs=()).auc.low > 0.5
    assert difference.low - 1e-3 <= 0 <= difference.high + 1e-3


def test_gap_attack_is_the_same(run, victim):
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBoxRuleBased

    from cloister.attacks import label_only

    places = np.arange(len(run.labels), dtype=np.float32)[:, None]
    theirs = MembershipInferenceBlackBoxRuleBased(victim).infer(places, run.labels)
    np.testing.assert_array_equal(theirs.ravel(), label_only.gap(run.logits.argmax(axis=1), run.labels))


def test_rate_of_true_positives_is_the_same(run):
    from art.metrics.privacy.worst_case_mia_score import get_roc_for_fpr

    scores = signals.score("phi", run.logits, run.labels)
    (found,) = metrics.evaluate(scores, run.is_member, fprs=(0.1,)).rates
    ((fpr, tpr, _),) = get_roc_for_fpr(attack_proba=scores, attack_true=run.is_member.astype(int), targeted_fpr=0.1)
    assert fpr <= 0.1
    assert tpr == pytest.approx(found.tpr.value)
