"""Matchers of random networks with noise banks."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.banks import noise_bank
from picopose_cli.network.picopose import PicoPose
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.rules import make_rules
from picopose_cli.pose.template_store import TemplateStore


def make_matcher(
    network: PicoPose,
    *,
    rules: str = "paper",
    hypotheses: int = 3,
    precision: str = "fp32",
    obj_ids: Sequence[int] = (1, 7),
    views: int = 12,
) -> Matcher:
    """Return a matcher on the CPU whose store has the noise banks of some objects."""
    inference = InferenceNetwork(network, device="cpu", precision=precision)
    matcher = Matcher(inference, TemplateStore(inference), make_rules(rules, hypotheses))
    for obj_id in obj_ids:
        matcher.store.add_object(noise_bank(obj_id, views=views))
    return matcher
