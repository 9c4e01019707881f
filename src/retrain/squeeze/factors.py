"""Singular values of B A, and B A cut to a rank, without ever forming B A.

With B = Q_B R_B and A^T = Q_A R_A, B A = Q_B (R_B R_A^T) Q_A^T: its singular values are those of
the small core R_B R_A^T (rank x rank), its singular vectors Q_B U and Q_A V (LoRA-Squeeze,
arXiv 2602.10993).
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrain.errors import InputError

_CONDITION_ERROR = 1e-9
"""Largest relative error of a triangle that is accepted for being twice as fast."""


def choose_device(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Where to compute and in what. Raises InputError for what is not here or unknown."""
    if dtype not in ("float64", "float32"):
        raise InputError(f"dtype: {dtype!r} is not known; float64 or float32 is wanted")
    cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if cuda else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device: {device!r} is not known; auto, cpu or cuda is wanted") from None
    if chosen.type == "cuda" and not cuda:
        raise InputError(f"device: {device!r}, but torch finds no GPU here; use cpu or auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {device!r}, but there are {torch.cuda.device_count()} GPU(s)")
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device: {device!r} cannot do this; auto, cpu or cuda is wanted")
    return chosen, torch.float64 if dtype == "float64" else torch.float32


def stored_dtype(name: str) -> torch.dtype:
    """torch's dtype for what safetensors calls `F32`, `BF16`, …, of those that factors have."""
    dtypes = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    return dtypes[name]


def singular_values(b: Tensor, a: Tensor) -> Tensor:
    """The singular values of B A, largest first. b: (out, rank); a: (rank, in) -> (rank,).

    All exactly zero when what is left of the product is round-off.
    """
    rank = a.shape[0]
    size = torch.linalg.norm(b) * torch.linalg.norm(a)
    if not bool(size > 0):
        return a.new_zeros(rank)
    values = torch.linalg.svdvals(_triangle(b) @ _triangle(a.T).T)
    if bool(values[0] <= rank * torch.finfo(a.dtype).eps * size):
        return a.new_zeros(rank)
    # A layer smaller than the rank has fewer singular values.
    return torch.nn.functional.pad(values, (0, rank - len(values)))


def truncated(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A of a rank (Eckart and Young), balanced between the factors.

    b: (out, r); a: (r, in) -> (out, rank), (rank, in) with B' = Q_B U sqrt(S) and
    A' = sqrt(S) V^T Q_A^T. The largest entry of each column of B' is positive, so that the same
    adapter always gives the same bytes. A layer smaller than `rank` gets zeros for the rest.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    root = s[:rank].sqrt()
    new_b = q_b @ (u[:, :rank] * root)
    new_a = (root[:, None] * vt[:rank]) @ q_a.T
    largest = new_b.gather(0, new_b.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(new_b.dtype)
    missing = rank - len(root)
    return (
        torch.nn.functional.pad(new_b * sign, (0, missing)),
        torch.nn.functional.pad(new_a * sign.T, (0, 0, 0, missing)),
    )


def cut_zero(b: Tensor, a: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of a rank for a module whose B A is zero, that training can still move.

    One factor stays as it is (with both zero, neither would ever get a gradient); the other is
    zero, as it nearly always was: PEFT starts linear layers with B = 0, embeddings with A = 0.
    """
    b, a = b[:, :rank], a[:rank]
    return (torch.zeros_like(b), a) if bool(a.any()) else (b, torch.zeros_like(a))


def _triangle(matrix: Tensor) -> Tensor:
    """R of a QR decomposition. (m, r) -> (min(m, r), r).

    The Cholesky factor of the Gram matrix is the same R up to signs and takes half the time, but
    squares the condition number: its relative error is about eps * condition^2 (Higham, Accuracy
    and Stability of Numerical Algorithms, ch. 10 and 20). It is taken only where that is below
    1e-9, far below the rounding of the stored factors; else Householder QR, which is always safe.
    """
    eps = torch.finfo(matrix.dtype).eps
    upper, failed = torch.linalg.cholesky_ex(matrix.T @ matrix, upper=True)
    if not bool(failed):
        eye = torch.eye(len(upper), dtype=upper.dtype, device=upper.device)
        inverse = torch.linalg.solve_triangular(upper, eye, upper=True)
        condition = torch.linalg.norm(upper) * torch.linalg.norm(inverse)
        if bool(eps * condition**2 <= _CONDITION_ERROR):
            triangle: Tensor = upper
            return triangle
    r: Tensor = torch.linalg.qr(matrix, mode="r").R
    return r
