"""The parts of ``make card``: stages that test and measure a CUDA card."""
