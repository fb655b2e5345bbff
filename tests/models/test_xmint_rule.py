"""xMINT averaged with a linear rule: the rule is the control's, the mean geometric, and the network trained by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from tests.models.section_batch import Sections
from tests.models.test_xmint import make_batch, model, rows_of

from histoweave.models.impute import create_imputer
from histoweave.train.saved import restore


def test_the_mean_is_geometric_and_of_the_control() -> None:
    batch = make_batch()
    seen = torch.poisson(300 * batch.shared)
    hidden = batch.counts
    batch = replace(batch, shared=seen / seen.sum(1, keepdim=True), y=hidden / hidden.sum(1, keepdim=True))
    made, alone = model(image=False, blend=True).eval(), model(image=False).eval()
    alone.load_state_dict(made.state_dict(), strict=False)
    made.index(Sections(batch))
    tables = [sparse.csr_matrix(table.numpy()) for table in (torch.cat([seen, hidden], 1), seen)]
    linear = create_imputer("ridge-shares")(*tables).values
    expected = np.sqrt((alone(batch).detach().numpy() + 1e-5) * (linear + 1e-5))
    np.testing.assert_allclose(made(batch).detach(), expected / expected.sum(1, keepdims=True), rtol=1e-4)
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(made.loss(batch)[0], alone.loss(batch)[0], **close)
    other = model(image=False, blend=True).eval()
    restore(other, made.state_dict(), where="here")
    torch.testing.assert_close(other(batch), made(batch), **close)


def test_cells_without_a_measured_entry_are_not_learnt_from() -> None:
    batch = make_batch()
    made, without = model(image=False, blend=True), model(image=False, blend=True)
    masked = replace(batch, y=batch.y.clone(), y_mask=batch.y_mask.clone())
    masked.y[:4], masked.y_mask[:4] = torch.nan, False
    made.rule.fit(Sections(masked))
    without.rule.fit(Sections(rows_of(batch, torch.arange(4, len(batch)))))
    torch.testing.assert_close(made.rule.coef, without.rule.coef)
    torch.testing.assert_close(made.rule.intercept, without.rule.intercept)
