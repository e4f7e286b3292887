//! One scan: coefficients of one or several channels, all of their bits or some.

use super::bits::{Bits, Huffman};
use super::{BLOCK, Picture, ZIGZAG};

/// What a scan brings.
#[derive(Clone, Copy)]
struct Part {
    /// First and last coefficient.
    start: usize,
    end: usize,
    /// Bits that are left out, in the scan before and in this one; nothing came before if the first is 0.
    before: u32,
    now: u32,
}

/// A channel in a scan.
#[derive(Clone, Copy)]
struct Member {
    component: usize,
    dc: usize,
    ac: usize,
}

/// What goes on from one block to the next.
#[derive(Default)]
struct Running {
    /// The last first coefficient of each member.
    last: [i32; 4],
    /// Blocks that still have no coefficients.
    empty: u32,
}

impl Picture {
    /// Reads a scan. Returns what comes after it.
    pub(super) fn scan<'a>(&mut self, segment: &[u8], data: &'a [u8]) -> Option<&'a [u8]> {
        let (members, part) = self.scan_header(segment)?;
        for member in &members {
            let component = &mut self.components[member.component];
            if component.steps.is_none() {
                component.steps = self.steps[component.table];
            }
        }
        let mut bits = Bits::new(data);
        let mut running = Running::default();
        let (columns, rows) = self.units(&members);
        let mut until_restart = self.restart;
        for unit in 0..columns * rows {
            if self.restart > 0 {
                if until_restart == 0 {
                    bits.restart()?;
                    running = Running::default();
                    until_restart = self.restart;
                }
                until_restart -= 1;
            }
            self.unit(
                &members,
                part,
                (unit % columns, unit / columns),
                &mut bits,
                &mut running,
            )?;
        }
        Some(bits.rest())
    }

    fn scan_header(&self, segment: &[u8]) -> Option<(Vec<Member>, Part)> {
        let (count, rest) = segment.split_first()?;
        let count = usize::from(*count);
        let (list, last) = (rest.get(..2 * count)?, rest.get(2 * count..2 * count + 3)?);
        let mut members = Vec::new();
        for pair in list.chunks_exact(2) {
            let mut components = self.components.iter();
            members.push(Member {
                component: components.position(|component| component.id == pair[0])?,
                dc: usize::from(pair[1] >> 4),
                ac: usize::from(pair[1] & 15),
            });
        }
        let mut part = Part {
            start: usize::from(last[0]),
            end: usize::from(last[1]),
            before: u32::from(last[2] >> 4),
            now: u32::from(last[2] & 15),
        };
        if !self.progressive {
            part = Part {
                start: 0,
                end: BLOCK - 1,
                before: 0,
                now: 0,
            };
        }
        let whole = !self.progressive || (part.start == 0) == (part.end == 0);
        let alone = part.start == 0 || members.len() == 1;
        let fits = part.start <= part.end && part.end < BLOCK && part.now <= 13;
        (!members.is_empty() && members.len() <= 4 && whole && alone && fits)
            .then_some((members, part))
    }

    /// Units of a scan across and down: those of the picture, or the blocks of a channel that is alone.
    fn units(&self, members: &[Member]) -> (usize, usize) {
        match members {
            [one] => {
                let component = &self.components[one.component];
                (component.width.div_ceil(8), component.height.div_ceil(8))
            }
            _ => (
                self.width.div_ceil(8 * self.h),
                self.height.div_ceil(8 * self.v),
            ),
        }
    }

    fn unit(
        &mut self,
        members: &[Member],
        part: Part,
        (column, row): (usize, usize),
        bits: &mut Bits<'_>,
        running: &mut Running,
    ) -> Option<()> {
        let alone = members.len() == 1;
        for (index, member) in members.iter().enumerate() {
            let component = &mut self.components[member.component];
            let (h, v) = if alone {
                (1, 1)
            } else {
                (component.h, component.v)
            };
            for block in 0..h * v {
                let (x, y) = (column * h + block % h, row * v + block / h);
                let start = (y * component.block_columns + x) * BLOCK;
                let values = component.coefficients.get_mut(start..start + BLOCK)?;
                let dc = self.dc.get(member.dc)?.as_ref();
                let ac = self.ac.get(member.ac)?.as_ref();
                if !self.progressive {
                    first(bits, dc?, &mut running.last[index], 0, values)?;
                    baseline(bits, ac?, values)?;
                } else if part.start == 0 && part.before == 0 {
                    first(bits, dc?, &mut running.last[index], part.now, values)?;
                } else if part.start == 0 {
                    values[0] |= (bits.take(1)? << part.now) as i16;
                } else if part.before == 0 {
                    others(bits, ac?, part, &mut running.empty, values)?;
                } else {
                    refine(bits, ac?, part, &mut running.empty, values)?;
                }
            }
        }
        Some(())
    }
}

/// The first coefficient, as the difference from that of the block before.
fn first(
    bits: &mut Bits<'_>,
    table: &Huffman,
    last: &mut i32,
    shift: u32,
    values: &mut [i16],
) -> Option<()> {
    let size = bits.symbol(table)?;
    *last = last.wrapping_add(bits.signed(size)?);
    values[0] = (*last << shift) as i16;
    Some(())
}

/// All other coefficients.
fn baseline(bits: &mut Bits<'_>, table: &Huffman, values: &mut [i16]) -> Option<()> {
    let mut place = 1;
    while place < BLOCK {
        let symbol = bits.symbol(table)?;
        let (run, size) = (usize::from(symbol >> 4), symbol & 15);
        if size == 0 {
            if run < 15 {
                break;
            }
            place += 16;
            continue;
        }
        place += run;
        values[*ZIGZAG.get(place)?] = bits.signed(size)? as i16;
        place += 1;
    }
    Some(())
}

/// Upper bits of some coefficients.
fn others(
    bits: &mut Bits<'_>,
    table: &Huffman,
    part: Part,
    empty: &mut u32,
    values: &mut [i16],
) -> Option<()> {
    if *empty > 0 {
        *empty -= 1;
        return Some(());
    }
    let mut place = part.start;
    while place <= part.end {
        let symbol = bits.symbol(table)?;
        let (run, size) = (u32::from(symbol >> 4), symbol & 15);
        if size == 0 && run < 15 {
            *empty = (1 << run) - 1 + bits.take(run)?.cast_unsigned();
            break;
        }
        place += run as usize;
        if size > 0 {
            values[*ZIGZAG.get(place)?] = (bits.signed(size)? << part.now) as i16;
        }
        place += 1;
    }
    Some(())
}

/// One more bit of some coefficients: of those that are there, and those that come up with it.
fn refine(
    bits: &mut Bits<'_>,
    table: &Huffman,
    part: Part,
    empty: &mut u32,
    values: &mut [i16],
) -> Option<()> {
    let bit = 1_i16 << part.now;
    let mut place = part.start;
    if *empty == 0 {
        while place <= part.end {
            let symbol = bits.symbol(table)?;
            let (mut run, size) = (u32::from(symbol >> 4), symbol & 15);
            let mut new = 0;
            if size > 0 {
                new = if bits.take(1)? == 1 { bit } else { -bit };
            } else if run < 15 {
                *empty = (1 << run) + bits.take(run)?.cast_unsigned();
                break;
            }
            // Passes so many coefficients that are still zero, and improves the others on the way.
            while place <= part.end {
                let value = &mut values[ZIGZAG[place]];
                if *value != 0 {
                    improve(bits, value, bit)?;
                } else if run == 0 {
                    *value = new;
                    place += 1;
                    break;
                } else {
                    run -= 1;
                }
                place += 1;
            }
        }
    }
    if *empty > 0 {
        for place in place..=part.end {
            let value = &mut values[ZIGZAG[place]];
            if *value != 0 {
                improve(bits, value, bit)?;
            }
        }
        *empty -= 1;
    }
    Some(())
}

fn improve(bits: &mut Bits<'_>, value: &mut i16, bit: i16) -> Option<()> {
    if bits.take(1)? == 1 && *value & bit == 0 {
        *value = value.wrapping_add(if *value < 0 { -bit } else { bit });
    }
    Some(())
}
