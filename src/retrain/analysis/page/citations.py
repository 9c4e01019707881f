"""Works that the methods of a report cite."""

from __future__ import annotations

REFERENCES = {
    "Fisher, 1935": "Fisher, R. A. (1935). The Design of Experiments. Oliver and Boyd.",
    "Holm, 1979": "Holm, S. (1979). A simple sequentially rejective multiple test procedure. "
    "Scandinavian Journal of Statistics 6, 65-70.",
    "Hu et al., 2022": "Hu, E. J., et al. (2022). LoRA: Low-rank adaptation of large language "
    "models. ICLR.",
    "Liu et al., 2025": "Liu, Z., et al. (2025). Understanding R1-Zero-like training: A critical "
    "perspective. arXiv:2503.20783.",
    "Loshchilov and Hutter, 2019": "Loshchilov, I., and Hutter, F. (2019). Decoupled weight decay "
    "regularization. ICLR.",
    "Phipson and Smyth, 2010": "Phipson, B., and Smyth, G. K. (2010). Permutation p-values should "
    "never be zero. Statistical Applications in Genetics and Molecular Biology 9(1), 39.",
    "Schuirmann, 1987": "Schuirmann, D. J. (1987). A comparison of the two one-sided tests "
    "procedure and the power approach for assessing the equivalence of average bioavailability. "
    "Journal of Pharmacokinetics and Biopharmaceutics 15, 657-680.",
    "Shao et al., 2024": "Shao, Z., et al. (2024). DeepSeekMath: Pushing the limits of "
    "mathematical reasoning in open language models. arXiv:2402.03300.",
    "Student, 1908": "Student (1908). The probable error of a mean. Biometrika 6, 1-25.",
    "Westfall and Young, 1993": "Westfall, P. H., and Young, S. S. (1993). Resampling-Based "
    "Multiple Testing. Wiley.",
}
"""By the name they are cited under."""
