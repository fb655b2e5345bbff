"""Fitting: one flat training loop, and the predictors that benchmark and user see."""

from histoweave.train.load import load_predictor
from histoweave.train.predictor import Learner, Predictor
from histoweave.train.recipe import Recipe, load_recipe
from histoweave.train.spec import Spec, resolve
from histoweave.train.transfer import Transfer

__all__ = ["Learner", "Predictor", "Recipe", "Spec", "Transfer", "load_predictor", "load_recipe", "resolve"]
