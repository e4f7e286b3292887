//! Sums and products of matrices.

use super::ast::{Node, each_child};
use super::budget::Budget;
use super::canon::Canon;
use super::compare::At;
use super::fraction::Fraction;

/// A matrix of exact forms, row after row.
struct Matrix {
    columns: usize,
    cells: Vec<Fraction>,
}

/// Most cells of a matrix that is computed.
const MAX_CELLS: usize = 100;

/// Whether an expression is computed from matrices.
pub(crate) fn is_computed(at: At<'_>) -> bool {
    let is_operation = matches!(
        at.node(),
        Node::Sum(_) | Node::Product(_) | Node::Negative(_) | Node::Quotient(..)
    );
    let mut found = false;
    if is_operation {
        each_child(at.node(), |child| {
            let child = at.with(child);
            found |= matches!(child.node(), Node::Matrix(..)) || is_computed(child);
        });
    }
    found
}

/// Whether two expressions of matrices are equal; none where one cannot be computed.
pub(crate) fn same(left: At<'_>, right: At<'_>, budget: &Budget) -> Option<bool> {
    let mut canon = Canon::new(budget);
    let a = matrix(left, &mut canon, budget)?;
    let b = matrix(right, &mut canon, budget)?;
    if a.columns != b.columns || a.cells.len() != b.cells.len() {
        return Some(false);
    }
    for (x, y) in a.cells.iter().zip(&b.cells) {
        if x != y && !canon.is_difference_zero(x, y)? {
            return canon.is_decisive().then_some(false);
        }
    }
    Some(true)
}

fn matrix(at: At<'_>, canon: &mut Canon<'_>, budget: &Budget) -> Option<Matrix> {
    match at.node() {
        Node::Matrix(columns, cells) if cells.len() <= MAX_CELLS => {
            let cells: Option<Vec<Fraction>> = cells
                .iter()
                .map(|id| canon.form(at.tree, *id, at.sign).ok())
                .collect();
            Some(Matrix {
                columns: *columns,
                cells: cells?,
            })
        }
        Node::Sum(all) => {
            let mut sum: Option<Matrix> = None;
            for id in all {
                let next = matrix(at.with(*id), canon, budget)?;
                sum = Some(match sum {
                    None => next,
                    Some(before) => add(before, next, budget)?,
                });
            }
            sum
        }
        Node::Negative(inner) => {
            let mut inner = matrix(at.with(*inner), canon, budget)?;
            inner.cells = inner.cells.into_iter().map(Fraction::neg).collect();
            Some(inner)
        }
        Node::Quotient(above, below) => {
            let above = matrix(at.with(*above), canon, budget)?;
            let below = canon.form(at.tree, *below, at.sign).ok()?.inverse()?;
            scale(above, &below, budget)
        }
        Node::Product(all) => {
            let mut product: Option<Matrix> = None;
            let mut factor: Option<Fraction> = None;
            for id in all {
                match canon.form(at.tree, *id, at.sign) {
                    Ok(number) => {
                        factor = Some(match factor {
                            None => number,
                            Some(before) => before.mul(&number, budget).ok()?,
                        });
                    }
                    Err(_) => {
                        let next = matrix(at.with(*id), canon, budget)?;
                        product = Some(match product {
                            None => next,
                            Some(before) => multiply(&before, &next, budget)?,
                        });
                    }
                }
            }
            match factor {
                Some(factor) => scale(product?, &factor, budget),
                None => product,
            }
        }
        _ => None,
    }
}

fn add(left: Matrix, right: Matrix, budget: &Budget) -> Option<Matrix> {
    if left.columns != right.columns || left.cells.len() != right.cells.len() {
        return None;
    }
    let cells: Option<Vec<Fraction>> = left
        .cells
        .into_iter()
        .zip(right.cells)
        .map(|(a, b)| a.add(b, budget).ok())
        .collect();
    Some(Matrix {
        columns: left.columns,
        cells: cells?,
    })
}

fn scale(matrix: Matrix, factor: &Fraction, budget: &Budget) -> Option<Matrix> {
    let cells: Option<Vec<Fraction>> = matrix
        .cells
        .iter()
        .map(|cell| cell.mul(factor, budget).ok())
        .collect();
    Some(Matrix {
        columns: matrix.columns,
        cells: cells?,
    })
}

fn multiply(left: &Matrix, right: &Matrix, budget: &Budget) -> Option<Matrix> {
    let inner = left.columns;
    if right.cells.len() != inner * right.columns {
        return None;
    }
    let mut cells = Vec::with_capacity(left.cells.len() / inner * right.columns);
    for row in left.cells.chunks(inner) {
        for column in 0..right.columns {
            let mut sum = row[0].mul(&right.cells[column], budget).ok()?;
            for (index, cell) in row.iter().enumerate().skip(1) {
                let product = cell
                    .mul(&right.cells[index * right.columns + column], budget)
                    .ok()?;
                sum = sum.add(product, budget).ok()?;
            }
            cells.push(sum);
        }
    }
    Some(Matrix {
        columns: right.columns,
        cells,
    })
}
