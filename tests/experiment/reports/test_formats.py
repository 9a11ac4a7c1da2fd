import re

from randlora_core.experiment.reports.formats import TextTable, escape_latex, to_csv, to_latex, to_markdown

TABLE = TextTable(
    "Scores in % of a_b",
    ("Method", "", "Cars & Co", "Average"),
    (("LoRA-4", "paper", "51.9", "-"), ("", "ours", "52.0 ± 0.5", "60.1")),
    frozenset({(1, 3)}),
    num_labels=2,
)


def test_latex_is_a_booktabs_table_with_everything_escaped():
    assert to_latex(TABLE).splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Scores in \% of a\_b}",
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"Method &  & Cars \& Co & Average \\",
        r"\midrule",
        r"LoRA-4 & paper & 51.9 & - \\",
        r" & ours & 52.0 $\pm$ 0.5 & \textbf{60.1} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_every_character_that_latex_takes_for_a_command_is_escaped():
    special = "\\ { } $ & # ^ _ % ~ ±"
    escaped = escape_latex(special)
    known = r"\\textbackslash\{\}|\\\{|\\\}|\\\$|\\&|\\#|\\textasciicircum\{\}|\\_|\\%|\\textasciitilde\{\}|\$\\pm\$"
    assert re.fullmatch(f"(?:(?:{known}) ?)+", escaped) and len(escaped.split(" ")) == len(special.split(" "))


def test_markdown_marks_in_bold_and_aligns_labels_to_the_left():
    assert to_markdown(TABLE).splitlines() == [
        "| Method |       |  Cars & Co |  Average |",
        "| ------ | ----- | ---------: | -------: |",
        "| LoRA-4 | paper |       51.9 |        - |",
        "|        | ours  | 52.0 ± 0.5 | **60.1** |",
    ]


def test_a_wide_table_is_cut_between_columns_and_keeps_labels_and_marks():
    parts = TABLE.parts(30)
    assert [part.columns for part in parts] == [("Method", "", "Cars & Co"), ("Method", "", "Average")]
    assert [part.marked for part in parts] == [frozenset(), frozenset({(1, 2)})]
    assert parts[1].rows == (("LoRA-4", "paper", "-"), ("", "ours", "60.1"))
    assert TABLE.parts(1)[0].columns == ("Method", "", "Cars & Co") and TABLE.parts(100) == [TABLE]


def test_csv_writes_what_is_missing_as_a_dash():
    assert to_csv(("a", "b"), [(None, 0.25), ("x,y", 0)]) == 'a,b\n-,0.25\n"x,y",0\n'
