"""Whatever happens in whatever order, each request gets the tokens that it would get alone, and no page is lost."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.scheduler.drive import Drive

# Prompts are beginnings of a few texts, so that they share pages.
TEXTS = [[(7 * i + 3 * i * i) % 5 for i in range(40)], [(i * i + i // 7) % 7 for i in range(40)], [2] * 40]


@st.composite
def scheduler_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Pools from one that barely holds one sequence to one that holds all, and every policy."""
    page_size = draw(st.sampled_from([1, 2, 4]))
    max_model_len = draw(st.sampled_from([15, 16, 33]))
    max_num_seqs = draw(st.sampled_from([1, 2, 5]))
    return {
        "page_size": page_size,
        "max_model_len": max_model_len,
        "num_pages": 1 + -(-max_model_len // page_size) + draw(st.sampled_from([0, 1, 4, 30])),
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_seqs + draw(st.sampled_from([0, 1, 6, 50])),
        "enable_prefix_caching": draw(st.sampled_from([True, True, True, False])),
        "scheduling_policy": draw(st.sampled_from(["fcfs", "priority"])),
        "batching": draw(st.sampled_from(["continuous", "continuous", "continuous", "static"])),
        "reserve_whole_context": draw(st.sampled_from([False, False, False, True])),
    }


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are aborted and expire at random while steps run."""

    @initialize(config=scheduler_settings(), depth=st.sampled_from([1, 2, 3]), vocab_size=st.sampled_from([7, 50]))
    def start(self, config: dict[str, Any], depth: int, vocab_size: int) -> None:
        self.drive = Drive(depth, vocab_size, **config)

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        max_model_len = self.drive.config.max_model_len
        length = data.draw(st.integers(1, max_model_len - 1))
        max_tokens = data.draw(st.sampled_from([None, 1, 2, 3, 9]))
        min_tokens = data.draw(st.sampled_from([0, 0, 1, 3]))
        self.drive.add(
            data.draw(st.sampled_from(TEXTS))[:length],
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_model_len - length, max_tokens or max_model_len),
            ignore_eos=data.draw(st.booleans()),
            stop_token_ids=data.draw(st.sampled_from([None, [3], [0, 4]])),
            time_limit=data.draw(st.sampled_from([None, None, 1.0, 4.0])),
            timeout=data.draw(st.sampled_from([None, None, 2.0, 4.0])),
            priority=data.draw(st.integers(0, 2)),
        )

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.drive.step()

    @precondition(lambda self: self.drive.outputs)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.drive.abort(data.draw(st.sampled_from(sorted(self.drive.outputs))), "unknown")

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.drive.expire(self.drive.now + seconds)

    def teardown(self) -> None:
        if hasattr(self, "drive"):
            self.drive.run()
            self.drive.check_outputs()


SchedulerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
test_requests_get_the_tokens_they_would_get_alone = SchedulerMachine.TestCase
