"""The engine of `training`: a run's folder, which survives a kill at any moment.

`folder` lets one process in at a time, `checkpoints` writes and reads where a run stands, `metrics` its step records.
"""
