"""Writes quantiles.csv: central credible intervals of Beta distributions, by scipy.

    pip install scipy
    python3 tests/golden/beta/make.py
"""

from pathlib import Path

from scipy.stats import beta

PARAMETERS = [0.5, 1.0, 2.0, 3.5, 8.0, 17.0, 65.0, 1001.0, 100_001.0]

with open(Path(__file__).parent / "quantiles.csv", "w") as out:
    out.write("alpha,beta,probability,low,high\n")
    for a in PARAMETERS:
        for b in PARAMETERS:
            for probability in (0.5, 0.95, 0.999):
                outside = (1 - probability) / 2
                low, high = beta.ppf(outside, a, b), beta.isf(outside, a, b)
                out.write(f"{a!r},{b!r},{probability!r},{float(low)!r},{float(high)!r}\n")
