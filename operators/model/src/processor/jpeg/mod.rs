//! JPEG files unpacked to the very values that libjpeg-turbo gives, which Pillow uses. The exactness of the standard leaves room for
//! several levels of difference between decoders; models were trained with these.
//!
//! Baseline and progressive Huffman coding with 8 bits, grey or with three colour channels. [`decode`] gives nothing for
//! other files and for damaged ones; a general decoder then has the word.

mod bits;
mod planes;
mod scan;

use super::resize::RgbPixels;
use bits::Huffman;
use planes::Colours;

/// Values in a block.
const BLOCK: usize = 64;

/// Places of coefficients in a block, in the order in which they are stored.
const ZIGZAG: [usize; BLOCK] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One channel of the picture.
struct Component {
    id: u8,
    /// Blocks across and down in the unit that repeats.
    h: usize,
    v: usize,
    /// Number of its quantisation table.
    table: usize,
    /// That table as it was at its first scan.
    steps: Option<[u16; BLOCK]>,
    /// Samples that count, without the filling up to whole blocks.
    width: usize,
    height: usize,
    /// Blocks in a row and in a column, filled up to whole units.
    block_columns: usize,
    block_rows: usize,
    coefficients: Vec<i16>,
}

/// What the headers have said so far.
#[derive(Default)]
struct Picture {
    width: usize,
    height: usize,
    progressive: bool,
    /// Largest `h` and `v`.
    h: usize,
    v: usize,
    components: Vec<Component>,
    steps: [Option<[u16; BLOCK]>; 4],
    dc: [Option<Huffman>; 4],
    ac: [Option<Huffman>; 4],
    restart: usize,
    jfif: bool,
    /// The colour transform of an Adobe marker.
    adobe: Option<u8>,
}

/// Unpacks a file whose picture has this size.
pub(super) fn decode(bytes: &[u8], width: usize, height: usize) -> Option<RgbPixels> {
    let mut picture = Picture {
        width,
        height,
        ..Picture::default()
    };
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        // Any number of 0xff may come before a marker.
        let at = rest.iter().position(|byte| *byte == 0xff)?;
        let skipped = rest[at..].iter().position(|byte| *byte != 0xff)?;
        let marker = rest[at + skipped];
        rest = &rest[at + skipped + 1..];
        match marker {
            0xd9 => break,
            0x00 | 0x01 | 0xd0..=0xd8 => continue,
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?]));
        let segment = rest.get(2..length)?;
        rest = &rest[length..];
        if marker == 0xda {
            rest = picture.scan(segment, rest)?;
        } else {
            picture.header(marker, segment)?;
        }
    }
    picture.pixels()
}

impl Picture {
    fn header(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        match marker {
            0xc0..=0xc2 => self.frame(segment, marker == 0xc2),
            // Other ways of coding.
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => None,
            0xc4 => self.huffman_tables(segment),
            0xdb => self.quantisation_tables(segment),
            0xdd => {
                self.restart =
                    usize::from(u16::from_be_bytes([*segment.first()?, *segment.get(1)?]));
                Some(())
            }
            0xe0 => {
                self.jfif |= segment.starts_with(b"JFIF\0");
                Some(())
            }
            0xee => {
                if segment.starts_with(b"Adobe") {
                    self.adobe = segment.get(11).copied();
                }
                Some(())
            }
            _ => Some(()),
        }
    }

    fn frame(&mut self, segment: &[u8], progressive: bool) -> Option<()> {
        let &[depth, h1, h0, w1, w0, count, ref list @ ..] = segment else {
            return None;
        };
        let count = usize::from(count);
        if depth != 8 || !self.components.is_empty() || list.len() != 3 * count {
            return None;
        }
        if count != 1 && count != 3 {
            return None;
        }
        self.progressive = progressive;
        let size = [[w1, w0], [h1, h0]].map(|side| usize::from(u16::from_be_bytes(side)));
        // Another size than the one that was found good is that of a damaged file.
        if size != [self.width, self.height] || size.contains(&0) {
            return None;
        }
        let factors = |entry: &[u8]| (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
        self.h = list.chunks_exact(3).map(|entry| factors(entry).0).max()?;
        self.v = list.chunks_exact(3).map(|entry| factors(entry).1).max()?;
        for entry in list.chunks_exact(3) {
            // With one channel the factors mean nothing.
            let (h, v) = if count == 1 { (1, 1) } else { factors(entry) };
            let (most_h, most_v) = if count == 1 { (1, 1) } else { (self.h, self.v) };
            if !(1..=4).contains(&h) || !(1..=4).contains(&v) || entry[2] > 3 {
                return None;
            }
            let block_columns = self.width.div_ceil(8 * most_h) * h;
            let block_rows = self.height.div_ceil(8 * most_v) * v;
            self.components.push(Component {
                id: entry[0],
                h,
                v,
                table: usize::from(entry[2]),
                steps: None,
                width: (self.width * h).div_ceil(most_h),
                height: (self.height * v).div_ceil(most_v),
                block_columns,
                block_rows,
                coefficients: vec![0; block_columns * block_rows * BLOCK],
            });
        }
        if count == 1 {
            (self.h, self.v) = (1, 1);
        }
        Some(())
    }

    fn quantisation_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((head, rest)) = segment.split_first() {
            let width = usize::from(head >> 4) + 1;
            let values = rest.get(..BLOCK * width)?;
            let mut steps = [0; BLOCK];
            for (place, value) in ZIGZAG.iter().zip(values.chunks_exact(width)) {
                steps[*place] = value
                    .iter()
                    .fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            }
            *self.steps.get_mut(usize::from(head & 15))? = Some(steps);
            segment = &rest[BLOCK * width..];
        }
        Some(())
    }

    fn huffman_tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((head, rest)) = segment.split_first() {
            let counts = rest.first_chunk::<16>()?;
            let total: usize = counts.iter().map(|count| usize::from(*count)).sum();
            let symbols = rest.get(16..16 + total)?;
            let tables = if head >> 4 == 0 {
                &mut self.dc
            } else {
                &mut self.ac
            };
            *tables.get_mut(usize::from(head & 15))? = Some(Huffman::new(counts, symbols)?);
            segment = &rest[16 + total..];
        }
        Some(())
    }

    fn pixels(mut self) -> Option<RgbPixels> {
        let colours = self.colours()?;
        let (width, height) = (self.width, self.height);
        let (most_h, most_v) = (self.h, self.v);
        let planes = self
            .components
            .drain(..)
            .map(|component| planes::full_size(component, most_h, most_v, width, height))
            .collect::<Option<Vec<_>>>()?;
        Some(RgbPixels {
            width,
            height,
            values: planes::rgb(&planes, colours),
        })
    }

    /// What the channels mean: what the markers say, else what their names suggest.
    fn colours(&self) -> Option<Colours> {
        let ids: Vec<u8> = self
            .components
            .iter()
            .map(|component| component.id)
            .collect();
        match (ids.len(), self.jfif, self.adobe) {
            (1, ..) => Some(Colours::Grey),
            (3, true, _) | (3, false, Some(1)) => Some(Colours::YCbCr),
            (3, false, Some(0)) => Some(Colours::Rgb),
            (3, false, None) if ids == *b"RGB" => Some(Colours::Rgb),
            (3, false, _) => Some(Colours::YCbCr),
            _ => None,
        }
    }
}
