"""The runner: turns a StepPlan into one call of one compiled step, without waiting for it."""
