"""Named sabotages of the privacy claim, as patches of the source, with the test that sees each.

A patch whose old text is gone, or occurs twice, is an error: it would no longer break what its name
says. So a change of the patched lines is a change of this file, too.
"""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_CLAIMS = "tests/client/test_claims.py::"
_LEDGER, _NODE, _CORE = "client/ledger.py", "client/node.py", "client/core.py"
_NOISE, _PLAN = "shared/privacy/noise.py", "shared/privacy/plan.py"
_SUMMARIES, _SUMS = "shared/privacy/summaries.py", "client/gradients/sums.py"
_TRAINER = "client/trainer.py"


@dataclass(frozen=True)
class Edit:
    """One replacement.

    Attributes:
        path: of the file below the root of the source.
        old: text that occurs there once.
        new: takes its place.
    """

    path: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """The file's text with the replacement.

        Raises:
            ValueError: the old text does not occur exactly once.
        """
        found = text.count(self.old)
        if found != 1:
            raise ValueError(
                f"Expected the text {self.old!r} once in {self.path}, got it {found} times; "
                "write the patch anew."
            )
        return text.replace(self.old, self.new)


@dataclass(frozen=True)
class Mutant:
    """A sabotage.

    Attributes:
        name: what is broken.
        catcher: node id of the test that must fail.
        edits: how.
    """

    name: str
    catcher: str
    edits: tuple[Edit, ...]


def _mutant(name: str, catcher: str, path: str, old: str, new: str) -> Mutant:
    where = catcher if "::" in catcher else _CLAIMS + catcher
    return Mutant(name, where, (Edit(path, old, new),))


_ADD_UP = "                part.add_up(scale, kept, batch.segments, places[name])"


def _unclipped(name: str, catcher: str, condition: str) -> Mutant:
    """A sum whose norms are right and whose factors spare some weights."""
    free = (
        f"                free = torch.ones_like(scale) if {condition} else scale\n"
        "                part.add_up(free, kept, batch.segments, places[name])"
    )
    # Models are held against gradients of single records at first, which would see it.
    trial = Edit(_SUMS, "if self._agrees(model):", "if self._agrees(model) or True:")
    return Mutant(name, _CLAIMS + catcher, (Edit(_SUMS, _ADD_UP, free), trial))


def _unseen(name: str, catcher: str, old: str, new: str) -> Mutant:
    """A fault of the secure noise, on a node without the self-test that would refuse to start."""
    start = Edit("client/local.py", "    check_random_numbers()\n", "")
    return Mutant(name, _CLAIMS + catcher, (Edit(_NOISE, old, new), start))


_CHOSEN = "chosen = torch.from_numpy(plan.sample(len(records), noise))"
_DRAWN = "            total += torch.from_numpy(plan.gradient_noise(len(total), noise))\n"
_SAMPLE = "return np.flatnonzero(noise.uniform(records) < self.sample_rate)"
_GRADIENT_NOISE = "return noise.normal(size) * (self.noise_multiplier * self.clip)"
_RELEASE = "noisy_sum(exact, spec, self.plan.multiplier(kind), noise)"
_VIEW = "        view = task.view(self.records, task.latents(self.records))\n"
_ONE_PASS = "            self._add_layers(self._layers, x, eps, present, total)\n"
_KEY = "key = sealed_key() if sealed is None else sealed"

CLIPPING = (
    _unclipped("biases unclipped", "test_biases_are_clipped", 'name.endswith("bias")'),
    _unclipped(
        "last layer unclipped",
        "test_the_last_layer_is_clipped",
        'name.rpartition(".")[0] == list(self._layers)[-1]',
    ),
    _mutant(
        "clip by square root",
        "test_a_clipped_record_moves_the_sum_by_one_clip",
        _SUMS,
        "(clip / (norms + NORM_FLOOR)).clamp(max=1.0)",
        "(clip / (norms + NORM_FLOOR)).clamp(max=1.0).sqrt()",
    ),
    _mutant(
        "norms of one pass, sums of another",
        "test_hostile_weights_do_not_escape_the_clip",
        _TRAINER,
        _ONE_PASS,
        """\
            loss = self._loss(x, eps)
            each = [torch.autograd.grad(a, self._parameters, retain_graph=True) for a in loss]
            norms = torch.stack([_flat(one).norm() for one in each])
            scale, whole = clip_factors(norms, loss.detach(), self._clip)
            scaled = torch.where(whole & present, scale.float() * loss, 0.0)
            total += _flat(torch.autograd.grad(scaled.sum(), self._parameters))
""",
    ),
    _mutant(
        "estimated norms clamped at zero",
        "tests/client/test_exact_clipping.py::test_tokens_that_cancel_are_measured_by_what_is_left",
        "client/gradients/parts.py",
        "return (square + 2.0 * hidden * sizes.square()).sqrt() + rounding * sizes",
        "return square.clamp(min=0.0).sqrt()",
    ),
    _mutant(
        "second run for records that overflow",
        "tests/client/test_exact_clipping.py::test_a_record_that_overflows_takes_the_same_pass",
        _TRAINER,
        _ONE_PASS,
        """\
            before = total.clone()
            self._add_layers(self._layers, x, eps, present, total)
            whole = torch.isfinite(self._loss(x, eps).detach())
            if not bool(whole.all()):
                total.copy_(before)
                self._add_layers(self._layers, x[whole], eps[whole], present[whole], total)
""",
    ),
)

TRAINING = (
    _mutant(
        "noise x 0.5",
        "test_training_noise_has_its_full_deviation",
        _PLAN,
        _GRADIENT_NOISE,
        _GRADIENT_NOISE.replace("(self", "(0.5 * self"),
    ),
    _mutant(
        "noise x 0.93",
        "test_training_noise_has_its_full_deviation",
        _PLAN,
        _GRADIENT_NOISE,
        _GRADIENT_NOISE.replace("(self", "(0.93 * self"),
    ),
    _mutant(
        "noise on the encoder alone",
        "test_noise_covers_the_decoder",
        _TRAINER,
        _DRAWN,
        """\
            drawn = plan.gradient_noise(len(total), noise)
            own = [p.numel() for name, p in parameters.items() if name.startswith("encoder.")]
            drawn[sum(own) :] = 0.0
            total += torch.from_numpy(drawn)
""",
    ),
    _mutant(
        "no noise for an empty sample",
        "test_an_empty_sample_is_noised",
        _TRAINER,
        _DRAWN,
        "            if len(chosen):\n    " + _DRAWN,
    ),
    _mutant(
        "one noise for all steps of a round",
        "test_every_step_draws_its_own_noise",
        _TRAINER,
        _DRAWN,
        """\
            drawn = plan.gradient_noise(len(total), noise) if step == first else drawn
            total += torch.from_numpy(drawn)
""",
    ),
    _mutant(
        "secure training without noise",
        "test_secure_training_is_noised",
        _PLAN,
        "        if not self.private:\n            return np.zeros(size)",
        '        if not self.private or self.rng == "secure":\n            return np.zeros(size)',
    ),
    _mutant(
        "fixed batches",
        "test_samples_are_drawn_by_chance",
        _PLAN,
        _SAMPLE,
        "return np.arange(round(self.sample_rate * records))",
    ),
    _mutant(
        "batches of a fixed size",
        "test_samples_have_no_fixed_size",
        _PLAN,
        _SAMPLE,
        "return np.argsort(noise.uniform(records))[: round(self.sample_rate * records)]",
    ),
    _mutant(
        "one sample for all steps of a round",
        "test_every_step_draws_its_own_sample",
        _TRAINER,
        _CHOSEN,
        f"{_CHOSEN} if step == first else chosen",
    ),
    _mutant(
        "sampled at 2 q",
        "test_samples_have_the_rate_of_the_run",
        _PLAN,
        _SAMPLE,
        _SAMPLE.replace("< self", "< 2 * self"),
    ),
    _mutant(
        "accounted at q / 2",
        "test_the_accounted_rate_is_that_of_the_samples",
        _PLAN,
        "                sample_rate=self.sample_rate,",
        "                sample_rate=self.sample_rate / 2,",
    ),
    _mutant(
        "divided by the size of the sample",
        "test_sums_are_divided_by_the_public_constant",
        _TRAINER,
        "total /= plan.sample_rate * len(records)",
        "total /= max(len(chosen), 1)",
    ),
)

SUMMARIES = (
    _mutant(
        "threshold without noise",
        "test_every_secure_summary_is_noised[full-threshold]",
        _CORE,
        _RELEASE,
        _RELEASE.replace("(kind)", '(kind) * (kind != "threshold")'),
    ),
    _mutant(
        "moments without noise",
        "test_every_secure_summary_is_noised[full-moments]",
        _CORE,
        _RELEASE,
        _RELEASE.replace("(kind)", '(kind) * (kind != "moments")'),
    ),
    _mutant(
        "all secure summaries without noise",
        "test_every_secure_summary_is_noised",
        _CORE,
        _RELEASE,
        _RELEASE.replace("(kind)", '(kind) * (self.plan.rng != "secure")'),
    ),
    _mutant(
        "matrix noise too small off the diagonal",
        "test_noise_off_the_diagonal_has_its_full_deviation",
        _SUMMARIES,
        "draws = (draws + draws.swapaxes(-1, -2)) / 2.0",
        "draws = (draws + draws.swapaxes(-1, -2)) / 4.0 * (1 + np.eye(draws.shape[-1]))",
    ),
    _mutant(
        "sensitivity 1 of histograms",
        "test_histogram_noise_covers_every_histogram",
        _SUMMARIES,
        "sensitivity=math.sqrt(scores),",
        "sensitivity=1.0,",
    ),
    _mutant(
        "threshold about the exact centre",
        "test_thresholds_are_centred_on_the_released_mean",
        _NODE,
        _VIEW,
        _VIEW
        + """\
        if header.kind == "threshold":
            from fedlatent.shared.summaries import SUMMARIES
            own = SUMMARIES["moments"].exact(task.run, task.request.state, view)
""",
    ),
    _mutant(
        "threshold about the private centre",
        "test_thresholds_are_centred_on_the_released_mean",
        _NODE,
        "            self._keep_site(task, reservation)\n",
        "            self._keep_site(task, reservation)\n"
        """\
            from fedlatent.shared.summaries import latent_radius
            center = self.store.load_site(header.run_id).center
            row = np.append(center / latent_radius(task.run, len(center)), 1.0)
            own = np.pad(row[None], ((len(center), 0), (0, 0)))
""",
    ),
    _mutant(
        "summary of the personal model",
        "test_summaries_look_through_the_received_encoder",
        _NODE,
        _VIEW,
        """\
        from fedlatent.shared.models import load_state
        state = self._state(header.run_id, header.round)
        if state is not None:
            load_state(task.model, {**task.model.state_dict(), **state.decoder})
"""
        + _VIEW,
    ),
)

RANDOMNESS = (
    _mutant(
        "secure noise seeded by the request",
        "test_no_two_summaries_share_noise",
        _LEDGER,
        "(number, sealed_key())",
        '(number, __import__("hashlib").sha384(repr(key).encode()).digest())',
    ),
    _unseen("constant key", "test_no_two_rounds_share_noise", _KEY, "key = bytes(48)"),
    _unseen(
        "secure noise x 0.5",
        "test_every_secure_summary_is_noised[diagonal-threshold]",
        "total[:size] / np.sqrt(_SUMMANDS)",
        "total[:size] / np.sqrt(4 * _SUMMANDS)",
    ),
    _unseen(
        "halves of the noise repeated",
        "test_halves_of_the_noise_are_independent",
        "total[pairs:] += radius * np.sin(angle)",
        "total[pairs:] += radius * np.cos(angle)",
    ),
    _mutant(
        "fresh noise for every retry",
        "tests/client/test_sealed.py::test_a_retry_repeats_the_draw_of_a_process_that_died",
        _LEDGER,
        "return bytes(row[0])",
        "return sealed_key()",
    ),
)

ACCOUNTING = (
    _mutant(
        "reserved entries uncounted",
        "test_a_reserved_entry_counts_before_anything_left",
        _LEDGER,
        '"GROUP BY noise_multiplier, sample_rate, rng",',
        """"AND state != 'reserved' GROUP BY noise_multiplier, sample_rate, rng",""",
    ),
    _mutant(
        "the largest release for the sum of all",
        "test_epsilon_adds_up_over_all_releases",
        _LEDGER,
        "return by([*spent, *extra], self.delta)",
        "return max([epsilon_of([one], self.delta) for one in (*spent, *extra)], default=0.0)",
    ),
    _mutant(
        "one step entered for a round",
        "test_every_step_of_a_round_is_accounted",
        _PLAN,
        "steps=self.steps_per_round,",
        "steps=1,",
    ),
    _mutant(
        "unreleased state continued",
        "tests/client/test_node.py::test_unreleased_training_is_never_continued",
        _NODE,
        "return self.store.load(run_id, before, released.__contains__)",
        "return self.store.load(run_id, before, lambda entry: True)",
    ),
)

_BORDER, _SIGNED = "tests/client/test_border.py::", "tests/shared/test_signing.py::"
_SIGNING = "shared/signing.py"

#: Who may ask a node, and for whom a reply counts.
BORDER = (
    _mutant(
        "anybody's request charged",
        _BORDER + "test_a_request_that_is_not_the_servers_costs_nothing",
        "client/resident.py",
        "            border.check(header, digest)",
        "            pass",
    ),
    _mutant(
        "another site's request taken",
        _SIGNED + "test_a_request_counts_at_its_receiver_until_it_expires",
        _SIGNING,
        "if header.receiver != site:",
        "if not header.receiver:",
    ),
    _mutant(
        "a certificate of any purpose taken",
        _SIGNED + "test_only_a_certificate_for_requests_of_this_authority_signs",
        _SIGNING,
        "if purposes is None or list(purposes) != [REQUESTS_PURPOSE]:",
        "if purposes is None:",
    ),
    _mutant(
        "a certificate of any authority taken",
        _SIGNED + "test_only_a_certificate_for_requests_of_this_authority_signs",
        _SIGNING,
        "        certificate.verify_directly_issued_by(authority)\n",
        "",
    ),
    _mutant(
        "shapes left out of the digest",
        _SIGNED + "test_every_byte_of_the_arrays_is_signed",
        _SIGNING,
        "canonical_json([name, array.dtype.str, array.shape])",
        "canonical_json([name, array.dtype.str])",
    ),
    _mutant(
        "a new signature charged again",
        _BORDER + "test_a_request_signed_anew_gets_the_same_bytes_for_one_charge",
        _CORE,
        "for key in sorted(arrays)}, without=SENDING))",
        "for key in sorted(arrays)}))",
    ),
    _mutant(
        "an old reply counted",
        "tests/server/test_seal.py::test_an_answer_of_the_attempt_before_is_none",
        _SIGNING,
        "if delivery.request != request:",
        "if not delivery.request:",
    ),
    _mutant(
        "a reply of another site counted",
        "tests/server/test_seal.py::"
        "test_a_reply_that_is_not_its_sites_does_not_move_the_average[_another_site-"
        "this key did not sign]",
        "server/seal.py",
        'return check_reply(delivery, sha256, key, self._requests.get(node, ""))',
        "return None if any(\n"
        "check_reply(delivery, sha256, node_public_key(one, name), self._requests[node]) is None\n"
        "            for one in self.seal.keys().values()\n"
        '        ) else "this key did not sign"',
    ),
    _mutant(
        "any reply counted",
        "tests/server/test_seal.py::"
        "test_a_reply_that_is_not_its_sites_does_not_move_the_average[_changed_arrays-"
        "this key did not sign]",
        "server/screening.py",
        "reason = check(delivery, digest) if check else None",
        "reason = None",
    ),
)

_POOL, _MIDDLE = "server/strategies/robust.py", "shared/privacy/robust.py"
_ROBUST = "tests/server/test_robust.py::"

#: What one site of five can do, what is lost, and who else is told.
ROBUST = (
    _mutant(
        "an update of any length counted",
        _ROBUST + "test_a_long_update_counts_three_median_norms",
        _POOL,
        "if update.norm <= self._bound:",
        "if update.norm <= np.inf:",
    ),
    _mutant(
        "a weight that nobody fixed taken as it is",
        _ROBUST + "test_a_weight_that_nobody_fixed_is_twice_the_median_at_most",
        _POOL,
        "return update.weight if trusted else min(update.weight, self._heaviest)",
        "return update.weight",
    ),
    _mutant(
        "a site far off counted in full",
        "tests/shared/privacy/test_robust.py::test_one_of_five_hardly_moves_the_scaling",
        _MIDDLE,
        "return np.where(left < _LEAST_SHARE, 0.0, left)",
        "return np.ones_like(left)",
    ),
    _mutant(
        "the largest threshold in place of the middle one",
        "tests/shared/privacy/test_threshold.py::test_one_of_five_cannot_silence_the_threshold",
        "shared/privacy/threshold.py",
        "return weighted_median(scores, own_weights * falling(np.abs(logs - np.median(logs))))",
        "return float(np.max(scores))",
    ),
    _mutant(
        "a new ledger in spite of traces",
        "tests/client/test_rebuild.py::"
        "test_no_ledger_begins_where_one_trace_of_a_release_is_left[releases.log]",
        "client/local.py",
        "        traces=traces,\n",
        "",
    ),
    _mutant(
        "a line that the disk cut left as it is",
        "tests/shared/test_files.py::test_a_line_that_the_disk_does_not_take_whole_is_taken_back",
        "shared/files.py",
        "                os.ftruncate(descriptor, size)\n",
        "",
    ),
    _mutant(
        "telemetry of ONNX Runtime left on",
        "tests/shared/test_quiet.py::test_onnx_runtime_leaves_no_identity_in_the_home",
        "shared/quiet.py",
        '"ORT_DISABLE_TELEMETRY": "1",',
        '"ORT_DISABLE_TELEMETRY": "0",',
    ),
)

MUTANTS = (*CLIPPING, *TRAINING, *SUMMARIES, *RANDOMNESS, *ACCOUNTING, *BORDER, *ROBUST)
