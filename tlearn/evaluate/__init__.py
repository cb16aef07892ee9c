"""``tlearn.evaluate``: how good a run is, and how good a backbone's features are without one.

    evaluation = tlearn.load("runs/flowers").evaluate()
    evaluation["accuracy"], evaluation.scores["macro_f1"].low, evaluation.mistakes[0].path

Numbers come first (``scores``, ``label_scores``, ``calibration``, ``intervals``, ``comparison``: arrays in, numbers
out), then what they are of (``labelled``, ``probes``), then an ``evaluation`` of both, and last how it is shown
(``tables``, ``plots``, ``page``, ``files``).
"""
