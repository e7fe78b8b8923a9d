"""One encoder, many threads, forked processes, and a stream without end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cn_clip.backends import load_backend
from cn_clip.encoder import Encoder
from cn_clip.errors import UserError
from tiny import TEXTS, encoded, pictures, save_ours, tiny_model

TESTS = Path(__file__).parent


def run(code: str, *args: str) -> str:
    """Run a program of its own, at most a minute: what must not hang."""
    head = "import sys; sys.path[:0] = sys.argv[1:3]\n"
    command = [sys.executable, "-W", "ignore", "-c", head + textwrap.dedent(code), str(TESTS)]
    done = subprocess.run(
        [*command, str(TESTS / "reference"), *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore:.* texts are longer than")
@pytest.mark.usefixtures("one_torch_thread")
def test_eight_threads_give_what_one_gives() -> None:
    encoder = Encoder(tiny_model(), workers=2)
    images = [encoded(image) for image in pictures(12)]
    expected = encoder.encode_images(images, 5), encoder.encode_texts(TEXTS * 5, 2)

    def work(_: int) -> tuple[np.ndarray, np.ndarray]:
        return encoder.encode_images(images, 5), encoder.encode_texts(TEXTS * 5, 2)

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(24)):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_goes_on() -> None:
    """After both kinds were encoded with several torch threads, a lock is held, and by workers of a pool, too."""
    code = """
        import multiprocessing, os, numpy as np, torch
        from cn_clip.encoder import Encoder
        from tiny import TEXTS, encoded, pictures, tiny_model
        from cn_clip.config import ModelConfig
        from cn_clip.models.clip import CLIP
        torch.set_num_threads(4)
        model = tiny_model().config.to_dict() | {"vision_width": 384, "vision_head_width": 64}  # worth threads
        torch.manual_seed(0)
        encoder = Encoder(CLIP(ModelConfig.from_dict(model)), workers=3)
        images, texts = [encoded(image) for image in pictures(40)], TEXTS * 40
        expected = encoder.encode_images(images), encoder.encode_texts(texts)

        def same(_=None):
            found = encoder.encode_images(images), encoder.encode_texts(texts)
            return all(np.allclose(one, other, atol=1e-5) for one, other in zip(found, expected))

        encoder._read._decoding.acquire()  # as if another thread were decoding at that moment
        if (child := os.fork()) == 0:
            images = pictures(40)  # PIL pictures take the lock
            os._exit(0 if same() else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        encoder._read._decoding.release()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            assert all(pool.map(same, range(6)))
        assert same()
        print("done")
    """
    assert run(code).endswith("done\n")


def test_streams_take_constant_memory() -> None:
    """Peak memory of many items is that of few: texts and pictures come from generators, and are not kept."""
    code = """
        import resource, torch
        from cn_clip.encoder import Encoder
        from tiny import encoded, pictures, tiny_model
        torch.set_num_threads(1)
        encoder = Encoder(tiny_model(), workers=2)
        picture = encoded(pictures(1)[0].resize((64, 64)))

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        def use(images, texts):
            count = sum(len(v) for v in encoder.image_vectors((bytes(picture) for _ in range(images))))
            words = (f"{i} 号 猫" for i in range(texts))
            return count + sum(len(v) for v, _ in encoder.text_vectors(words))

        use(200, 16_400)  # twice each buffer
        before = peak()
        assert use(2_000, 40_000) == 42_000
        grown = peak() - before
        assert grown < 12, f"{grown} MB"  # the pixels alone of the pictures are 25 MB
        print("done")
    """
    assert run(code).endswith("done\n")


def test_backends(tmp_path: Path) -> None:
    path = str(save_ours(tiny_model(), tmp_path / "ours.pt"))
    encoder = Encoder.load(path, backend="torch", device="cpu", precision="fp32")
    assert (encoder.backend.name, encoder.backend.context_limit, encoder.device) == ("torch", 64, "cpu")
    assert encoder.backend.logit_scale == pytest.approx(float(encoder.model.logit_scale.detach().exp()))
    with pytest.raises(UserError, match="no backend abacus; choose one of auto, torch"):
        load_backend("abacus", path, "cpu", "fp32")
    with pytest.raises(UserError, match="no precision fp64"):
        Encoder.load(path, precision="fp64")
    assert Encoder.load(path, device="cpu").precision in ("fp32", "bf16")
    assert Encoder.load(path, device="cpu").encode_texts(["猫"]).dtype == np.float32


def test_another_backend_is_one_class() -> None:
    """What an encoder needs of a runtime is the protocol, and no torch model."""

    class Sums:
        name, size, width, context_limit = "sums", 8, 3, 20
        device, precision, logit_scale = "here", "fp32", 10.0

        def encode_images(self, pixels: np.ndarray) -> np.ndarray:
            return pixels.mean(axis=(2, 3))

        def encode_texts(self, ids: np.ndarray) -> np.ndarray:
            return np.stack([ids.sum(axis=1), (ids > 0).sum(axis=1), ids[:, 1]], axis=1).astype(np.float32)

        def after_fork(self) -> None: ...

    encoder = Encoder(Sums())
    vectors = encoder.encode_texts(["猫", "一只狗", "猫"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors[0], vectors[2])
    assert encoder.encode_images(pictures(3)).shape == (3, 3)
    with pytest.raises(UserError, match="backend sums has no torch model"):
        _ = encoder.model
