"""Whether a served strategy still keeps its certificate: nothing differs from it, and its scores have not drifted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Self

from ensemblehub.config import Config
from ensemblehub.ensemble import AsyncEnsemble
from ensemblehub.ensemble_methods.identity import identity
from ensemblehub.errors import ArtifactError
from ensemblehub.schema import Verdict
from ensemblehub.tandem.certificate import FILE, Certificate, load_certificate
from ensemblehub.tandem.drift import PERIOD, RATE, DriftTest

log = logging.getLogger(__name__)


class CertificateWatch:
    """The certificate of one ensemble, and what speaks against it.

    Attributes:
        differing: what is served otherwise than certified, a sentence each.
        tests: of the first and the last probability of a question; together they raise a false alarm in at most
            a share `RATE` of periods of `PERIOD` questions.
    """

    def __init__(self, name: str, certificate: Certificate, differing: Sequence[str]) -> None:
        self.name = name
        self.certificate = certificate
        self.differing = differing
        scores = certificate.scores
        self.tests = {score: DriftTest(counts, RATE / len(scores)) for score, counts in scores.items()}
        for difference in differing:
            log.warning("%s: not certified (%s): %s", name, certificate, difference)

    @classmethod
    def of(cls, name: str, config: Config, ensemble: AsyncEnsemble) -> Self | None:
        """The watch of an ensemble that is served; None where it has no certificate.

        Raises:
            ArtifactError: the certificate is damaged, or missing where the configuration names its folder.
        """
        aggregation, named = ensemble.aggregation, config.ensemble.certificate
        folder = config.beside(named, FILE) if named else aggregation.certificate_folder
        certificate = load_certificate(folder) if folder else None
        if certificate is None:
            if named:
                raise ArtifactError(f"{name}: there is no certificate in {named}")
            return None
        now = identity(config, aggregation, ensemble.engines)
        differing = certificate.differing(now)
        longest, most = ensemble.sampling.max_tokens, config.server.max_output_tokens
        if most < longest:
            differing.append(
                f"`server.max_output_tokens` cuts answers at {most:,} tokens, not at {longest:,}"
            )
        return cls(name, certificate, differing)

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the certificate."""
        return not self.differing and not any(test.alarmed for test in self.tests.values())

    def add(self, verdicts: Sequence[Verdict]) -> bool:
        """Count the judge's verdicts on a question; returns whether they raise an alarm, which is logged."""
        if not verdicts:
            return False
        scores = {"first": verdicts[0].probability, "last": verdicts[-1].probability}
        alarms = [score for score, test in self.tests.items() if test.add(scores[score])]
        for score in alarms:
            log.warning(
                "%s: no longer certified (%s): the judge's %s probability of a question has drifted from the "
                "calibration questions (false alarms: at most %g in %d questions); certify it again on new questions",
                *(self.name, self.certificate, score, RATE, PERIOD),
            )
        return bool(alarms)
