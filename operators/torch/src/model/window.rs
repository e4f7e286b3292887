//! Which patches attend to which in a vision tower.
//!
//! The tower of Qwen2.5-VL works on patches in the order of attention windows. A window is a square of merged patches, cut
//! at the image's edges. Spans of equal length are attended to together.

use tch::{Device, Tensor};

use super::indices;

/// Consecutive patches that attend to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: i64,
    length: i64,
}

/// Spans of one length, as rows of the patch sequence.
#[derive(Debug)]
pub(crate) struct SpanGroup {
    /// Patches of the spans, one span after the other; `None` when they are the whole sequence in order.
    pub(crate) rows: Option<Tensor>,
    /// Number of spans.
    pub(crate) count: i64,
    /// Patches in each.
    pub(crate) length: i64,
}

/// A partition of the patches into spans.
#[derive(Debug)]
pub(crate) struct Spans {
    pub(crate) groups: Vec<SpanGroup>,
    /// Puts the concatenated groups back into the order of the sequence.
    pub(crate) restore: Option<Tensor>,
}

/// Order, positions and attention spans of the patches of some images.
#[derive(Debug)]
pub(crate) struct WindowPlan {
    /// For each merged patch in window order: its place in the images' own order.
    pub(crate) order: Vec<i64>,
    /// Row and column of each patch, in window order.
    pub(crate) positions: Vec<[i64; 2]>,
    pub(crate) windows: Spans,
    pub(crate) frames: Spans,
}

impl WindowPlan {
    /// Plans the images with these grids of patches (time, height, width), one after the other. `merge` is the side of a
    /// merged patch in patches, `window` that of a window in merged patches.
    pub(crate) fn new(merge: i64, window: i64, grids: &[[i64; 3]], device: Device) -> Self {
        let unit = merge * merge;
        let mut order = Vec::new();
        let mut positions = Vec::new();
        let (mut windows, mut frames) = (Vec::new(), Vec::new());
        let mut base = 0;
        for [time, height, width] in grids {
            let (rows, columns) = (height / merge, width / merge);
            for frame in 0..*time {
                frames.push(Span {
                    start: unit * order.len() as i64,
                    length: height * width,
                });
                for (top, left) in corners(rows, columns, window) {
                    let start = unit * order.len() as i64;
                    for row in top..rows.min(top + window) {
                        for column in left..columns.min(left + window) {
                            order.push(base + frame * rows * columns + row * columns + column);
                            positions.extend((0..unit).map(|patch| {
                                [row * merge + patch / merge, column * merge + patch % merge]
                            }));
                        }
                    }
                    windows.push(Span {
                        start,
                        length: unit * order.len() as i64 - start,
                    });
                }
            }
            base += time * rows * columns;
        }
        Self {
            order,
            positions,
            windows: group(&windows, device),
            frames: group(&frames, device),
        }
    }
}

/// Row and column of each patch, in the order in which images come: merged patch after merged patch.
pub(crate) fn merged_order(merge: i64, grids: &[[i64; 3]]) -> Vec<[i64; 2]> {
    let mut positions = Vec::new();
    for [time, height, width] in grids {
        for _frame in 0..*time {
            for (row, column) in corners(*height, *width, merge) {
                positions.extend(
                    (0..merge * merge).map(|patch| [row + patch / merge, column + patch % merge]),
                );
            }
        }
    }
    positions
}

/// A span for each frame of images whose patches come in their own order.
pub(crate) fn frames(grids: &[[i64; 3]], device: Device) -> Spans {
    let mut spans: Vec<Span> = Vec::new();
    for [time, height, width] in grids {
        for _frame in 0..*time {
            let start = spans.last().map_or(0, |span| span.start + span.length);
            let length = height * width;
            spans.push(Span { start, length });
        }
    }
    group(&spans, device)
}

/// Upper left corners of the squares of side `window` over a grid.
fn corners(rows: i64, columns: i64, window: i64) -> impl Iterator<Item = (i64, i64)> {
    let step = usize::try_from(window).expect("the configuration was checked");
    (0..rows)
        .step_by(step)
        .flat_map(move |top| (0..columns).step_by(step).map(move |left| (top, left)))
}

fn group(spans: &[Span], device: Device) -> Spans {
    let mut lengths: Vec<i64> = spans.iter().map(|span| span.length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    if let [length] = lengths[..] {
        let groups = vec![SpanGroup {
            rows: None,
            count: spans.len() as i64,
            length,
        }];
        return Spans {
            groups,
            restore: None,
        };
    }
    let mut groups = Vec::new();
    let mut sequence = Vec::new();
    for length in lengths {
        let members: Vec<&Span> = spans.iter().filter(|span| span.length == length).collect();
        let rows: Vec<i64> = members
            .iter()
            .flat_map(|span| span.start..span.start + length)
            .collect();
        groups.push(SpanGroup {
            rows: Some(indices(&rows, device)),
            count: members.len() as i64,
            length,
        });
        sequence.extend(rows);
    }
    Spans {
        groups,
        restore: Some(indices(&inverse(&sequence), device)),
    }
}

/// The permutation that undoes `permutation`.
pub(crate) fn inverse(permutation: &[i64]) -> Vec<i64> {
    let mut inverse = vec![0; permutation.len()];
    for (place, value) in permutation.iter().enumerate() {
        inverse[usize::try_from(*value).expect("a permutation has no negative entries")] =
            place as i64;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_at_the_edges() {
        // Merged grid of 2 x 3 in windows of 2 x 2: one of four merged patches, one of two.
        let plan = WindowPlan::new(2, 2, &[[1, 4, 6]], Device::Cpu);
        assert_eq!(plan.order, [0, 1, 3, 4, 2, 5]);
        assert_eq!(
            plan.positions[..5],
            [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
        );
        let lengths: Vec<(i64, i64)> = plan
            .windows
            .groups
            .iter()
            .map(|group| (group.count, group.length))
            .collect();
        assert_eq!(lengths, [(1, 8), (1, 16)]);
        assert_eq!(
            (plan.frames.groups[0].count, plan.frames.groups[0].length),
            (1, 24)
        );
    }

    #[test]
    fn equal_images_are_one_group() {
        let plan = WindowPlan::new(2, 4, &[[1, 4, 6], [1, 4, 6]], Device::Cpu);
        assert_eq!(plan.windows.groups.len(), 1);
        assert_eq!(
            (plan.windows.groups[0].count, plan.windows.groups[0].length),
            (2, 24)
        );
        assert!(plan.windows.restore.is_none());
        assert_eq!(plan.order, (0..12).collect::<Vec<_>>());
    }
}
