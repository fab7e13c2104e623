"""Reading and writing video: what is sampled, what is turned, and what is refused with which words."""

import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from steplab.clips import Clip, ClipError, read_clip, write_video


def shade(i, n, height=48, width=64):
    """Frame i of n as RGB: its grey level is its place in time, so that a frame tells which one it was."""
    return np.full((height, width, 3), round(255 * i / max(n - 1, 1)), np.uint8)


def make_video(path, pictures, codec="mpeg4", times=None, fps=25, options=None, pixel_format="yuv420p"):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def noise(n, height=48, width=64, seed=0):
    """Frames that do not compress, so that cutting a file short cuts frames off."""
    return list(np.random.default_rng(seed).integers(0, 255, (n, height, width, 3), dtype=np.uint8))


def memory(what):
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def level(clip):
    return clip.pixels.mean((0, 2, 3)).numpy()


def test_sixteen_frames_are_taken_one_each(tmp_path):
    path = make_video(tmp_path / "a.mp4", [shade(i, 16) for i in range(16)])
    clip = read_clip(path, frames=16, size=32)
    assert clip.pixels.shape == (3, 16, 32, 32) and clip.pixels.dtype == torch.float32
    np.testing.assert_allclose(level(clip), np.arange(16) / 15, atol=0.03)
    np.testing.assert_allclose(clip.times, np.arange(16) / 25, atol=1e-3)
    assert clip.source == "a.mp4"


def test_the_middle_frame_of_each_segment_is_taken(tmp_path):
    path = make_video(tmp_path / "a.mp4", [shade(i, 80) for i in range(80)])
    clip = read_clip(path, frames=16, size=32)
    np.testing.assert_allclose(clip.times, (5 * np.arange(16) + 2) / 25, atol=1e-3)
    np.testing.assert_allclose(level(clip), (5 * np.arange(16) + 2) / 79, atol=0.03)


def test_start_and_stop_choose_a_part(tmp_path):
    path = make_video(tmp_path / "a.mp4", [shade(i, 500) for i in range(500)])
    late = read_clip(path, frames=4, size=32, start=12.0, stop=16.0)  # far in: reached by seeking
    np.testing.assert_allclose(late.times, [12.48, 13.48, 14.48, 15.48], atol=0.021)
    np.testing.assert_allclose(level(late), late.times.numpy() * 25 / 499, atol=0.03)
    early = read_clip(path, frames=4, size=32, stop=1.0)
    np.testing.assert_allclose(level(early), early.times.numpy() * 25 / 499, atol=0.03)
    for part in ({"start": 3.0, "stop": 2.0}, {"start": -1.0}, {"start": 25.0}, {"stop": 21.0}):
        with pytest.raises(ClipError, match="start, stop"):
            read_clip(path, **part)


def test_fewer_frames_than_asked_for_repeat(tmp_path):
    path = make_video(tmp_path / "a.mp4", [shade(i, 4) for i in range(4)])
    np.testing.assert_allclose(level(read_clip(path, frames=8)), np.repeat(np.arange(4), 2) / 3, atol=0.03)
    one = make_video(tmp_path / "one.mp4", [shade(1, 2)])
    clip = read_clip(one)
    assert clip.pixels.shape == (3, 16, 112, 112) and torch.equal(clip.pixels[:, 0], clip.pixels[:, 15])


def test_variable_frame_rate_is_sampled_by_time(tmp_path):
    """Ten frames in the first second, one in each of the next eight: nine of ten samples fall on those."""
    times = [0.1 * i for i in range(10)] + [float(i) for i in range(1, 10)]
    pictures = [shade(0, 2)] * 10 + [shade(1, 2)] * 9
    clip = read_clip(make_video(tmp_path / "a.mkv", pictures, times=times, fps=1000), frames=10, size=32)
    assert level(clip)[0] < 0.05 and (level(clip)[1:] > 0.95).all()
    middles = (np.arange(10) + 0.5) * 0.9
    shown = [max(t for t in times if t <= m) for m in middles]
    np.testing.assert_allclose(clip.times, shown, atol=0.01)


@pytest.mark.parametrize(
    "turn, matrix",
    [(0, (1, 0, 0, 1)), (90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))]
    + [(180, (-1, 0, 0, 1)), (0, (1, 0, 0, -1)), (90, (0, 1, 1, 0)), (270, (0, -1, -1, 0))],  # mirrored
)
def test_display_matrix_is_applied(tmp_path, turn, matrix):
    """A red left half with a blue upper corner, turned clockwise and mirrored as a telephone's file asks."""
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:, :24] = (255, 0, 0)
    picture[:12, :12] = (255, 0, 255)
    path = make_video(tmp_path / "a.mp4", [picture] * 8)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix lies 40 bytes into the box
    a, b, c, d = (x * 65536 for x in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    red, _, blue = read_clip(path, frames=2, size=32).pixels[:, 0]
    halves = {0: red[:, :12], 90: red[:12], 180: red[:, 20:], 270: red[20:]}
    assert halves[turn].mean() > 0.9 and red.mean() < 0.6
    x, y = matrix[0] + matrix[2] < 0, matrix[1] + matrix[3] < 0  # where the upper left corner comes to lie
    corner = blue[slice(26, 32) if y else slice(6), slice(26, 32) if x else slice(6)]
    assert corner.mean() > 0.8 and blue.mean() < 0.2


def test_shorter_side_is_resized_and_the_centre_cut_out(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:90] = 255
    assert read_clip(make_video(tmp_path / "wide.mp4", [picture] * 2), size=30).pixels.mean() > 0.95
    tall = np.ascontiguousarray(picture.transpose(1, 0, 2))
    assert read_clip(make_video(tmp_path / "tall.mp4", [tall] * 2), size=30).pixels.mean() > 0.95


def test_stretching_keeps_the_whole_frame(tmp_path):
    picture = np.zeros((60, 120, 3), np.uint8)
    picture[:, 30:90] = 255
    path = make_video(tmp_path / "wide.mp4", [picture] * 2)
    pixels = read_clip(path, size=40, fit="stretch").pixels
    assert pixels.shape[2:] == (40, 40) and abs(pixels.mean() - 0.5) < 0.03
    with pytest.raises(ClipError, match="fit.*'crop' or 'stretch'"):
        read_clip(path, fit="squeeze")


@pytest.mark.parametrize("side", [120, 520])  # resized in one step, or shrunk by the decoder's scaler first
def test_fine_stripes_average_out(tmp_path, side):
    """Without antialiasing stripes one pixel wide would alias to a pattern; with it they turn grey."""
    picture = np.zeros((side, side, 3), np.uint8)
    picture[:, ::2] = 255
    pixels = read_clip(
        make_video(tmp_path / "a.avi", [picture] * 2, "ffv1", pixel_format="bgr0"), 2, 40
    ).pixels
    middle = pixels[..., 3:-3]  # at the edge a stripe has no partner
    assert (middle - 0.5).abs().max() < 0.12


@pytest.mark.parametrize("shape", [(47, 63), (2, 500), (33, 32)])
def test_odd_sizes(tmp_path, shape):
    pictures = [shade(i, 4, *shape) for i in range(4)]
    clip = read_clip(make_video(tmp_path / "a.avi", pictures, "ffv1", pixel_format="bgr0"), frames=4, size=56)
    assert clip.pixels.shape == (3, 4, 56, 56)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".gif"])
@pytest.mark.parametrize("height, width", [(32, 32), (33, 45)])
def test_what_is_written_can_be_read(tmp_path, suffix, height, width):
    pixels = torch.linspace(0.1, 0.9, 8)[None, :, None, None].expand(3, 8, height, width)
    path = write_video(tmp_path / f"a{suffix}", pixels, fps=8)
    clip = read_clip(path, frames=8, size=32)
    np.testing.assert_allclose(level(clip), np.linspace(0.1, 0.9, 8), atol=0.13 if suffix == ".gif" else 0.03)
    np.testing.assert_allclose(clip.times, np.arange(8) / 8, atol=0.02)


def test_what_cannot_be_written_is_refused(tmp_path):
    pixels = torch.rand(3, 4, 16, 16)
    with pytest.raises(ClipError, match="a.txt.*expected.*mp4"):
        write_video(tmp_path / "a.txt", pixels)
    with pytest.raises(ClipError, match=r"expected \(3, time"):
        write_video(tmp_path / "a.mp4", pixels[0])
    with pytest.raises(ClipError, match="cannot write"):
        write_video(tmp_path / "missing" / "a.mp4", pixels)


def test_a_clip_checks_its_numbers():
    good, times = torch.rand(3, 4, 8, 8), torch.arange(4.0)
    assert Clip(good, times, "x").pixels is good
    for pixels in (good * 255, good - 1, good * torch.nan):
        with pytest.raises(ClipError, match=r"\[0, 1\]"):
            Clip(pixels, times, "x")


BAD = {
    "empty.mp4": b"",
    "zeros.mp4": bytes(5000),
    "text.mp4": b"This is not a video.\n" * 100,
    "page.avi": b"<!doctype html><html><body>404 not found</body></html>" * 20,
    "text.txt": b"Nor is this.\n" * 100,
    "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "riff.avi": b"RIFF\x00\x10\x00\x00AVI LIST" + bytes(200),
    "movie.mp4": struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 512) + bytes(64),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_video_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(ClipError, match=name):
        read_clip(tmp_path / name)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ClipError, match="not there"):
        read_clip(tmp_path / "none.mp4")
    with pytest.raises(ClipError, match="a folder"):
        read_clip(tmp_path)
    with pytest.raises(ClipError, match="not there"):
        read_clip("http://127.0.0.1:9/video.mp4")
    with pytest.raises(ClipError, match="frames, size"):
        read_clip(tmp_path / "none.mp4", frames=0)


def test_sound_without_picture_is_refused(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for _ in range(20):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match=r"no video stream \(it holds 1 of sound\)"):
        read_clip(tmp_path / "song.mp4")


CUT = {  # container, codec, pixel format, options
    ".mp4": ("mpeg4", "yuv420p", {}),
    "-fast.mp4": ("mpeg4", "yuv420p", {"movflags": "faststart"}),
    ".avi": ("mpeg4", "yuv420p", {}),
    ".webm": ("libvpx-vp9", "yuv420p", {}),
    ".mkv": ("mpeg4", "yuv420p", {}),
    ".gif": ("gif", "rgb8", {}),
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("kept", [0.95, 0.5, 0.05])
def test_cut_files_are_refused_or_told_about(tmp_path, kind, kept):
    """Never a clip in silence of what is only a part of the video."""
    codec, pixel_format, options = CUT[kind]
    path = make_video(tmp_path / f"cut{kind}", noise(60), codec, options=options, pixel_format=pixel_format)
    whole = read_clip(path, frames=60, size=32)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            clip = read_clip(path, frames=60, size=32)
        except ClipError as error:
            assert path.name in str(error)
            return
    if kept < 0.9:
        pytest.fail(f"read {len(set(clip.times.tolist()))} of 60 frames without an error")
    assert caught or len(set(clip.times.tolist())) >= 0.9 * len(set(whole.times.tolist()))


def test_the_rest_of_a_cut_file_can_be_read_on_request(tmp_path):
    path = make_video(tmp_path / "a.avi", noise(100))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ClipError, match=r"cut short.*declares 100 frames.*stop=") as caught:
        read_clip(path)
    stop = float(str(caught.value).split("stop=")[1].split()[0])
    clip = read_clip(path, frames=8, stop=stop)
    assert 1.5 < stop < 2.5 and clip.times[-1] < stop


def test_damaged_frames_are_reported(tmp_path):
    path = make_video(tmp_path / "a.avi", noise(100))
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data) // 10, int(0.9 * len(data)), 3000):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            clip = read_clip(path)
        except ClipError as error:
            assert "a.avi" in str(error)
        else:
            assert clip.pixels.shape == (3, 16, 112, 112) and caught


def test_a_large_video_needs_little_memory(tmp_path):
    """300 frames of 640 × 480 are 276 MB as bytes and 1.1 GB as floats; a clip of them needs neither."""
    peak = Path("/proc/self/clear_refs")  # writing 5 there forgets the highest use of memory so far
    if not peak.exists():
        pytest.skip("no /proc here to read the use of memory from")
    path = make_video(tmp_path / "a.mp4", [shade(i, 300, 480, 640) for i in range(300)])
    read_clip(path, frames=2)
    peak.write_text("5")
    before = memory("VmHWM")
    read_clip(path, frames=16)
    assert memory("VmHWM") - before < 100e6


def test_real_videos(shared):
    """Whole files read without a warning, at the times their headers promise."""
    paths = sorted(shared.glob("ucf101/videos/*/*.avi")) + sorted(shared.glob("sports_ccby/*.mp4"))
    assert len(paths) == 7
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip = read_clip(path, frames=16, size=64)
        with av.open(str(path)) as container:
            declared = float(container.duration / av.time_base)
        gaps = clip.times.diff()
        assert abs(gaps.mean().item() * 16 - declared) < 0.1 * declared
        assert gaps.max() - gaps.min() < 0.08 and clip.pixels.std() > 0.05, path.name


def test_videos_of_the_wheel(wheel_videos):
    clip = read_clip(wheel_videos / "carphone_pristine.mp4")
    assert clip.pixels.shape == (3, 16, 112, 112) and 3.8 < clip.times[-1] < 4.0
