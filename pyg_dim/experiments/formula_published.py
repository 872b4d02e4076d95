"""Errors in print, to stand beside ours: Huang, Magar, Barati Farimani, J. Chem. Inf. Model. 2024, 64, 627."""

from __future__ import annotations

from typing import Final

FINE_TUNED: Final[dict[str, dict[str, str]]] = {
    "steels": {"Roost": "130 ± 20.30", "SSL": "111 ± 5.7", "FL": "130 ± 33.6", "MML": "126 ± 17.3",
               "RF-Magpie": "102 ± 11.6"},
    "jdft2d": {"Roost": "44.64 ± 11.73", "SSL": "42.87 ± 11.93", "FL": "42.65 ± 12.35", "MML": "45.00 ± 13.37",
               "RF-Magpie": "50.57 ± 9.1"},
    "phonons": {"Roost": "54.38 ± 4.73", "SSL": "46.05 ± 4.22", "FL": "51.93 ± 6.95", "MML": "53.33 ± 5.61",
                "RF-Magpie": "64.72 ± 9.31"},
    "dielectric": {"Roost": "0.3252 ± 0.0780", "SSL": "0.3122 ± 0.0808", "FL": "0.3167 ± 0.0779",
                   "MML": "0.3221 ± 0.0761", "RF-Magpie": "0.4204 ± 0.0783"},
    "log_gvrh": {"Roost": "0.1034 ± 0.0020", "SSL": "0.1006 ± 0.0023", "FL": "0.1046 ± 0.0029",
                 "MML": "0.1032 ± 0.0021", "RF-Magpie": "0.1049 ± 0.0019"},
    "log_kvrh": {"Roost": "0.0797 ± 0.0042", "SSL": "0.0777 ± 0.0041", "FL": "0.0776 ± 0.0031",
                 "MML": "0.0782 ± 0.0047", "RF-Magpie": "0.0825 ± 0.0033"},
    "perovskites": {"Roost": "0.4025 ± 0.0077", "SSL": "0.4050 ± 0.0086", "FL": "0.4043 ± 0.0091",
                    "MML": "0.4013 ± 0.0077", "RF-Magpie": "0.5809 ± 0.0109"},
    "mp_gap": {"Roost": "0.2571 ± 0.0055", "SSL": "0.2646 ± 0.0041", "FL": "0.2560 ± 0.0037",
               "MML": "0.2551 ± 0.0104", "RF-Magpie": "0.2657 ± 0.0013"},
    "mp_e_form": {"Roost": "0.0847 ± 0.0016", "SSL": "0.0854 ± 0.0012", "FL": "0.0843 ± 0.0017",
                  "MML": "0.0834 ± 0.0010", "RF-Magpie": "0.1167 ± 0.0013"},
}  # fmt: skip
"""Table 2: mean absolute errors after fine-tuning, mean and deviation over five folds."""

FROZEN: Final[dict[str, dict[str, str]]] = {
    "steels": {"SSL": "130 ± 16.9", "FL": "119 ± 16.8", "MML": "143 ± 21.1", "fractions": "100 ± 19.01",
               "dummy": "230 ± 9.7"},
    "jdft2d": {"SSL": "60.56 ± 10.95", "FL": "59.15 ± 7.94", "MML": "66.64 ± 10.33", "fractions": "61.51 ± 6.88",
               "dummy": "67.29 ± 10.18"},
    "phonons": {"SSL": "166.34 ± 14.58", "FL": "97.11 ± 22.00", "MML": "193.29 ± 10.53",
                "fractions": "234.78 ± 17.69", "dummy": "323.98 ± 17.73"},
    "dielectric": {"SSL": "0.5395 ± 0.0658", "FL": "0.4425 ± 0.0691", "MML": "0.5939 ± 0.0728",
                   "fractions": "0.5685 ± 0.0526", "dummy": "0.8088 ± 0.0718"},
    "log_gvrh": {"SSL": "0.1538 ± 0.0015", "FL": "0.1221 ± 0.0020", "MML": "0.2171 ± 0.0028",
                 "fractions": "0.1994 ± 0.0035", "dummy": "0.2931 ± 0.0031"},
    "log_kvrh": {"SSL": "0.1376 ± 0.0027", "FL": "0.1003 ± 0.0024", "MML": "0.2055 ± 0.0042",
                 "fractions": "0.1615 ± 0.0023", "dummy": "0.2897 ± 0.0043"},
    "perovskites": {"SSL": "0.5940 ± 0.0092", "FL": "0.5868 ± 0.0109", "MML": "0.6200 ± 0.0088",
                    "fractions": "0.5958 ± 0.0113", "dummy": "0.6450 ± 0.0167"},
    "mp_gap": {"SSL": "0.5187 ± 0.0478", "FL": "0.3942 ± 0.0041", "MML": "0.6476 ± 0.0049",
               "fractions": "0.5775 ± 0.0062", "dummy": "1.3272 ± 0.006"},
    "mp_e_form": {"SSL": "0.2590 ± 0.0014", "FL": "0.1459 ± 0.0010", "MML": "0.3375 ± 0.0009",
                  "fractions": "0.2776 ± 0.0020", "dummy": "1.0059 ± 0.003"},
}  # fmt: skip
"""Table 3: random forests on frozen embeddings, and predicting the mean. The mean of perovskites is wrong in print: it
is the entry of another column of table 2, and the real one is 0.5660 ± 0.0048."""

T_TEST: Final[dict[str, dict[str, str]]] = {
    "steels": {"SSL": "0.125 (-1.93)", "FL": "0.982 (-0.22)", "MML": "0.8 (0.27)"},
    "jdft2d": {"SSL": "0.078 (-2.35)", "FL": "0.021 (-3.86)", "MML": "0.654 (-0.48)"},
    "phonons": {"SSL": "0.005 (-5.45)", "FL": "0.306 (-1.17)", "MML": "0.224 (-1.43)"},
    "dielectric": {"SSL": "0.006 (-5.40)", "FL": "0.002 (-7.63)", "MML": "0.682 (-0.44)"},
}
"""Table 4: p (t) of paired t tests against Roost from new parameters. Two entries do not agree with themselves: with
five folds t = -0.22 means p = 0.84, and t = -3.86 means p = 0.018."""
