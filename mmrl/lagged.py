"""The policy as it was some updates ago, for a collector that acts with both."""

from __future__ import annotations

from collections.abc import Mapping

from mmrl.ahead.source import twin
from mmrl.ahead.weights import Weights, trained
from mmrl.types import Policy


class Lagged:
    """A copy of a policy that stays as it is until it is renewed. What is not trained is shared with the policy: it
    takes the memory of the trained parameters once more, and so does a checkpoint."""

    def __init__(self) -> None:
        self._versions: Mapping[int, Weights] = {}
        self._copy: Policy | None = None
        self._up_to_date = False

    def renew(self, policy: Policy, version: int) -> None:
        """Be as `policy` is now, after `version` updates."""
        self.load({version: trained(policy)})

    def older(self) -> Mapping[int, Weights]:
        """Its weights by their version, for a checkpoint; none before it is first renewed. Nobody writes to them."""
        return self._versions

    def load(self, older: Mapping[int, Weights]) -> None:
        """Be as `older` told."""
        self._versions, self._up_to_date = dict(older), False

    def of(self, policy: Policy, version: int) -> Policy:
        """The copy of `policy` as it was after `version` updates, in eval mode.

        Raises:
            ValueError: it is another version that is there.
        """
        if version not in self._versions:
            raise ValueError(
                f"the policy as it was after {version} updates is wanted, and there is that after "
                f"{sorted(self._versions)}: load what `older` told with the rest of the state, or start a new run"
            )
        if self._copy is None:
            self._copy = twin(policy).eval()
        if not self._up_to_date:
            own = dict(self._copy.named_parameters())
            for name, tensor in self._versions[version].items():  # not copied: one set of them is enough
                own[name].data = tensor.to(own[name].device)
            self._up_to_date = True
        return self._copy
