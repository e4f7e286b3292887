//! Positions of prompt tokens along time, height and width.
//!
//! Text counts up along all three axes at once. An image's merged patches share one time and lie on a grid of rows
//! and columns; text after it goes on from the larger side of the grid.

/// Positions of a prompt and the position that follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) tokens: Vec<[i64; 3]>,
    pub(crate) next: i64,
}

/// Assigns positions. `grids` are the merged grids of the images in the order of their placeholders.
///
/// # Errors
/// When the placeholders do not add up to the images; the message is a lower-case fragment.
pub(crate) fn assign(
    token_ids: &[u32],
    image_token: u32,
    grids: &[[i64; 3]],
) -> Result<Positions, String> {
    let mut tokens = Vec::with_capacity(token_ids.len());
    let mut next = 0;
    let mut images = grids.iter();
    while tokens.len() < token_ids.len() {
        if token_ids[tokens.len()] != image_token {
            tokens.push([next; 3]);
            next += 1;
            continue;
        }
        let Some([frames, rows, columns]) = images.next().copied() else {
            return Err(mismatch(token_ids, image_token, grids));
        };
        let count = usize::try_from(frames * rows * columns).unwrap_or(usize::MAX);
        let placeholders = token_ids[tokens.len()..]
            .iter()
            .take(count)
            .filter(|id| **id == image_token)
            .count();
        if placeholders != count {
            return Err(mismatch(token_ids, image_token, grids));
        }
        for _frame in 0..frames {
            for row in 0..rows {
                tokens.extend((0..columns).map(|column| [next, next + row, next + column]));
            }
        }
        next += rows.max(columns);
    }
    if images.next().is_some() {
        return Err(mismatch(token_ids, image_token, grids));
    }
    Ok(Positions { tokens, next })
}

/// Positions of a prompt of text alone.
pub(crate) fn plain(tokens: usize) -> Positions {
    let next = tokens as i64;
    Positions {
        tokens: (0..next).map(|place| [place; 3]).collect(),
        next,
    }
}

fn mismatch(token_ids: &[u32], image_token: u32, grids: &[[i64; 3]]) -> String {
    let placeholders = token_ids.iter().filter(|id| **id == image_token).count();
    let patches: i64 = grids.iter().map(|grid| grid.iter().product::<i64>()).sum();
    format!(
        "the prompt has {placeholders} image placeholders (token {image_token}), but its {} images have {patches} \
         merged patches",
        grids.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_after_an_image_goes_on_from_its_larger_side() {
        let positions = assign(&[1, 9, 9, 9, 9, 9, 9, 2, 3], 9, &[[1, 2, 3]]).unwrap();
        assert_eq!(positions.tokens[0], [0, 0, 0]);
        assert_eq!(positions.tokens[1..4], [[1, 1, 1], [1, 1, 2], [1, 1, 3]]);
        assert_eq!(positions.tokens[4..7], [[1, 2, 1], [1, 2, 2], [1, 2, 3]]);
        assert_eq!(positions.tokens[7..], [[4, 4, 4], [5, 5, 5]]);
        assert_eq!(positions.next, 6);
    }

    #[test]
    fn placeholders_that_do_not_fit_the_images_are_counted() {
        let error = assign(&[1, 9, 9, 2], 9, &[[1, 2, 2]]).unwrap_err();
        assert!(
            error.contains("2 image placeholders") && error.contains("4 merged patches"),
            "{error}"
        );
        assert!(assign(&[1, 9, 2], 9, &[]).is_err());
        assert!(assign(&[1, 2], 9, &[[1, 1, 1]]).is_err());
    }
}
