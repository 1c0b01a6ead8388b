"""The study of pretraining: arms that differ in one thing, their runs, and what came of them."""
