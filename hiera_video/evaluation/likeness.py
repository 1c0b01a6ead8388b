"""How alike videos are: cosines of their windows, in the order of time.

Features of a network vary a lot along few directions, those that it was trained to tell apart, and
a copy of a video differs little from its neighbours there. So cosines are taken after whitening:
the mean of all windows is taken away, and every direction is divided by its spread.

Legend: N windows of all videos, V videos, n windows of a query, m of a video, dim channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hiera_video.evaluation.feature_folder import FeatureFolder

FLOOR = 0.01  # of the largest spread: below it is noise
FEWEST = 10  # windows whose spread says anything
FITTED = 65536  # windows that spreads are measured on, at most
MOST_COSINES = 1 << 26  # held at a time


@dataclass(frozen=True)
class Space:
    """features [.., dim] -> unit vectors, whose products are cosines"""

    mean: Tensor  # [dim]
    basis: Tensor  # [dim, dim]

    def __call__(self, features: Tensor) -> Tensor:
        return F.normalize((features - self.mean) @ self.basis, dim=-1)


def whitened(windows: Tensor) -> Space:
    """The space in which `windows` [N, dim] spread alike in every direction.

    The fewer windows, the more of it is their own: cosines of two folders are not of one measure.
    """
    if len(windows) < FEWEST:
        return plain(windows)
    step = -(-len(windows) // FITTED)
    some = windows[::step].double()
    mean = some.mean(0)
    spread, basis = torch.linalg.eigh((some - mean).T @ (some - mean) / len(some))
    spread = spread.clamp(min=0).sqrt()
    floor = FLOOR * spread.max().clamp(min=1e-12)
    return Space(mean.float(), (basis / (spread + floor)).float())


def plain(windows: Tensor) -> Space:
    """Cosines of the features as they are."""
    dim = windows.shape[1]
    return Space(torch.zeros(dim), torch.eye(dim))


class Windows:
    """The windows of all videos of some folders, one after the other, as unit vectors."""

    def __init__(
        self,
        folders: Sequence[FeatureFolder],
        *,
        measure: Callable[[Tensor], Space] = whitened,
        space: Space | None = None,
    ):
        """space: default what `measure` makes of the windows."""
        every = [(folder, k) for folder in folders for k in range(len(folder))]
        self.counts = torch.tensor([folder.windows(k) for folder, k in every])  # [V]
        self.firsts = self.counts.cumsum(0) - self.counts  # [V], windows
        (dim,) = folders[0].shape("features") or [0]
        self.vectors = torch.empty(int(self.counts.sum()), dim)  # [N, dim]
        for (folder, k), first, count in zip(every, self.firsts, self.counts):
            self.vectors[first : first + count] = folder.features(k)
        self.space = space or measure(self.vectors)
        for part in self.vectors.split(FITTED):  # in their place: they are most of the memory
            part.copy_(self.space(part))

    def __len__(self) -> int:
        """Videos."""
        return len(self.counts)

    def of(self, video: int) -> Tensor:
        """[m, dim]"""
        first = int(self.firsts[video])
        return self.vectors[first : first + int(self.counts[video])]

    def blocks(self, queries: int) -> Iterator[tuple[int, int]]:
        """(first video, last + 1): as many as `queries` windows can be compared with at once."""
        most = max(1, MOST_COSINES // queries)
        first = 0
        while first < len(self):
            reach = self.firsts + self.counts - self.firsts[first] <= most
            last = max(first + 1, int(reach.sum()))
            yield first, last
            first = last

    def cosines(self, queries: Tensor, first: int, last: int) -> Tensor:
        """Of queries [n, dim] with the windows of videos first to last - 1: [n, N]"""
        end = int(self.firsts[last - 1] + self.counts[last - 1])
        return queries @ self.vectors[int(self.firsts[first]) : end].T


class Match(NamedTuple):
    """Windows of a query beside windows of a video, one by one."""

    video: int
    score: float  # mean of the cosines
    query_first: int
    first: int  # window of the video
    length: int  # windows


def matches(
    query: Tensor,
    windows: Windows,
    *,
    top: int,
    in_order: bool = True,
    apart: int | None = None,
    allowed: Tensor | None = None,
) -> list[Match]:
    """The best places of a query [n, dim] among all windows, best first: at most `top`.

    in_order: the windows of a video follow each other at one distance, as the query's do, and are
    compared along time; the shorter of the two lies within the other. Else each window of the query
    takes the best one of the video. apart: several places of a video, which begin at least so many
    windows apart; default one. allowed: bool [V], the videos that are looked at; default all.
    """
    found: list[Match] = []
    for first, last in windows.blocks(len(query)):
        cosines = windows.cosines(query, first, last)
        counts = windows.counts[first:last]
        if allowed is not None:
            cosines[:, ~allowed[first:last].repeat_interleave(counts)] = -torch.inf
        block = _Block(cosines, windows.firsts[first:last] - windows.firsts[first], counts)
        if not in_order:
            of_block = list(block.any_order(top))
        else:
            of_block = list(block.inside(top, apart)) + list(block.around(top))
        found += [match._replace(video=match.video + first) for match in of_block]
        found = sorted(found, key=lambda match: -match.score)[:top]
    return [match for match in found if match.score > -torch.inf]


class _Block:
    """cosines [n, N] of a query with the windows of some videos, whose places are firsts, counts"""

    def __init__(self, cosines: Tensor, firsts: Tensor, counts: Tensor):
        self.cosines = cosines
        self.firsts = firsts
        self.counts = counts
        self.of_window = torch.arange(len(counts)).repeat_interleave(counts)  # [N], video

    def any_order(self, top: int) -> Iterator[Match]:
        size = (len(self.cosines), len(self.counts))
        best = torch.full(size, -torch.inf)
        best.scatter_reduce_(1, self.of_window.expand(size[0], -1), self.cosines, "amax")
        scores = best.mean(0)  # [V]
        for video in scores.topk(min(top, size[1])).indices.tolist():
            own = self.cosines[:, self._slice(video)]
            at_query, at_video = divmod(int(own.argmax()), own.shape[1])
            yield Match(video, float(scores[video]), at_query, at_video, 1)

    def inside(self, top: int, apart: int | None) -> Iterator[Match]:
        """The query within videos that are as long as it, or longer."""
        length, total = self.cosines.shape
        starts = total - length + 1
        if starts < 1:
            return
        score = torch.zeros(starts)
        for k in range(length):
            score += self.cosines[k, k : k + starts]
        score /= length
        score[self.of_window[:starts] != self.of_window[length - 1 :]] = -torch.inf
        best = torch.full((len(self.counts),), -torch.inf)
        best.scatter_reduce_(0, self.of_window[:starts], score, "amax")
        for video in best.topk(min(top, len(best))).indices.tolist():
            if best[video] == -torch.inf:
                return  # those that are left are shorter, or not asked for
            own = score[self._slice(video)].clone()
            for _ in range(1 if apart is None else top):
                place = int(own.argmax())
                if own[place] == -torch.inf:
                    break
                yield Match(video, float(own[place]), 0, place, length)
                if apart is not None:
                    own[max(0, place - apart + 1) : place + apart] = -torch.inf

    def around(self, top: int) -> Iterator[Match]:
        """Videos within the query, that are shorter than it."""
        short = (self.counts < len(self.cosines)).nonzero().flatten()
        for length in self.counts[short].unique().tolist():
            videos = short[self.counts[short] == length]
            base = self.firsts[videos]
            best = torch.full((len(videos),), -torch.inf)
            where = torch.zeros(len(videos), dtype=torch.long)
            for start in range(len(self.cosines) - length + 1):
                steps = [self.cosines[start + k, base + k] for k in range(length)]
                score = torch.stack(steps).mean(0)
                better = score > best
                best = torch.where(better, score, best)
                where[better] = start
            for k in best.topk(min(top, len(best))).indices.tolist():
                yield Match(int(videos[k]), float(best[k]), int(where[k]), 0, length)

    def _slice(self, video: int) -> slice:
        first = int(self.firsts[video])
        return slice(first, first + int(self.counts[video]))
