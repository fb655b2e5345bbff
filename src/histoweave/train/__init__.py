"""Fitting: one flat training loop, and the predictors that benchmark and user see."""

from histoweave.train.predictor import Learner, Predictor, load_predictor
from histoweave.train.recipe import Recipe, load_recipe
from histoweave.train.transfer import Transfer

__all__ = ["Learner", "Predictor", "Recipe", "Transfer", "load_predictor", "load_recipe"]
