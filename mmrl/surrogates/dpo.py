"""Direct preference optimisation, arXiv 2305.18290, eq. 7: CPL without a bias, relative to the reference.

L = -log sigmoid(beta [sum_t log pi / ref of the better - that of the worse]), over pairs of a group as in
`mmrl.surrogates.CPL`
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.surrogates.cpl import CPL


@dataclass(frozen=True)
class DPO(CPL):
    """`alpha` is the paper's beta."""

    bias: float = 1.0
    reference: bool = True
