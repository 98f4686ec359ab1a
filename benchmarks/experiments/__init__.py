"""The paper's comparisons, repeated: grids of architecture, inflation and seed on one data set."""
