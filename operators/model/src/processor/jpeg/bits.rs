//! Bits of entropy-coded data, and Huffman codes.

/// Bits that are looked up at once.
const QUICK: u32 = 9;

/// The codes of a table.
pub(super) struct Huffman {
    /// For each start of a code: its length and symbol, if it is not longer.
    quick: Vec<Option<(u8, u8)>>,
    /// For each length: the first code, and the place of its symbol.
    first: [(u32, usize); 17],
    counts: [u32; 17],
    symbols: Vec<u8>,
}

impl Huffman {
    /// From how many codes there are of each length, and their symbols.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table = Self {
            quick: vec![None; 1 << QUICK],
            first: [(0, 0); 17],
            counts: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, count) in (1_u8..).zip(counts) {
            let index = usize::from(length);
            table.first[index] = (code, place);
            table.counts[index] = u32::from(*count);
            for _ in 0..*count {
                if code >> length != 0 {
                    return None;
                }
                if u32::from(length) <= QUICK {
                    let spare = QUICK - u32::from(length);
                    let start = (code << spare) as usize;
                    table.quick[start..start + (1 << spare)].fill(Some((length, symbols[place])));
                }
                code += 1;
                place += 1;
            }
            code <<= 1;
        }
        Some(table)
    }
}

/// Reads bits up to the next marker; zeros after it.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    /// Bits that were made up behind the end.
    missing: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self {
            data,
            at: 0,
            held: 0,
            count: 0,
            missing: 0,
        }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let byte = match (self.data.get(self.at), self.data.get(self.at + 1)) {
                (Some(0xff), Some(0)) => {
                    self.at += 2;
                    0xff
                }
                (Some(0xff) | None, _) => {
                    self.missing += 8;
                    0
                }
                (Some(byte), _) => {
                    self.at += 1;
                    *byte
                }
            };
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    fn peek(&mut self, count: u32) -> u32 {
        if self.count < count {
            self.fill();
        }
        ((self.held >> (self.count - count)) & ((1 << count) - 1)) as u32
    }

    /// The next bits as a number; at most 16.
    pub(super) fn take(&mut self, count: u32) -> Option<i32> {
        let value = self.peek(count);
        self.count -= count;
        // More was taken than there is.
        (self.count >= self.missing).then_some(value.cast_signed())
    }

    /// The next symbol.
    pub(super) fn symbol(&mut self, table: &Huffman) -> Option<u8> {
        if let Some((length, symbol)) = table.quick[self.peek(QUICK) as usize] {
            self.take(u32::from(length))?;
            return Some(symbol);
        }
        for length in QUICK + 1..=16 {
            let code = self.peek(length);
            let (first, place) = table.first[length as usize];
            let offset = code.wrapping_sub(first);
            if code >= first && offset < table.counts[length as usize] {
                self.take(length)?;
                return table.symbols.get(place + offset as usize).copied();
            }
        }
        None
    }

    /// A number of so many bits, of which the first is its sign.
    pub(super) fn signed(&mut self, count: u8) -> Option<i32> {
        if count == 0 {
            return Some(0);
        }
        if count > 15 {
            return None;
        }
        let value = self.take(u32::from(count))?;
        let half = 1 << (count - 1);
        Some(if value < half {
            value - 2 * half + 1
        } else {
            value
        })
    }

    /// Goes behind the next restart marker.
    pub(super) fn restart(&mut self) -> Option<()> {
        (self.held, self.count, self.missing) = (0, 0, 0);
        let rest = &self.data[self.at..];
        let pair = rest
            .windows(2)
            .position(|pair| pair[0] == 0xff && pair[1] != 0 && pair[1] != 0xff)?;
        (0xd0..=0xd7).contains(&rest[pair + 1]).then_some(())?;
        self.at += pair + 2;
        Some(())
    }

    /// What comes after the entropy-coded data.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.data[self.at..]
    }
}
