"""The benchmark: commands, main path, and a folder for each stage.

The main path is `experiment.py`: data and views -> pre-train -> diagnose -> measure -> record -> evaluate.

    specs/         what a grid and a run are asked to be: presets, TOML files, options, learning rates (grid_spec.py)
    records/       what a run leaves on disk, sealed; how it is read again; the environment it was made in
    statistics/    intervals of accuracies (accuracy.py) and of ratios (ratios.py)
    training/      data of a run (data.py; split by datasets/splits.py), networks, the training loop, ranks
    evaluation/    probes at label fractions, diagnostics
    measure/       MACs, memory, paired time and speed-ups (paired.py; of a whole run: timed_method.py)
    grid/          plan.py checks what was asked; execute.py measures, runs what is missing, and reports
    launch/        workers, SLURM jobs, and the leases by which processes share runs (leases.py: also taking one over)
    analysis/      records to a report: read/ -> judge/ (claims.py: where a verdict is reached) -> show/ -> page.py
    verification/  does a record hold? files, recount, rerun, rescore, remeasure

A folder imports only those below it: grid > launch, verification, analysis.page > experiment, analysis.show >
evaluation, measure, analysis.judge > training, analysis.read > records > specs > statistics, messages.py.
"""
