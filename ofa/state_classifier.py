"""The linear probe: what can be read off a state by a linear map."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def state_classifier() -> Pipeline:
    """A logistic regression on states [n, D], each of the D numbers standardised; it is yet to be fitted."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
