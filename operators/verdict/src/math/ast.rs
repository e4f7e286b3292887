//! What an answer says, as a tree in one vector: children stand before their parents.

use super::rat::Rat;

/// Place of a node.
pub(crate) type Id = u32;

/// A variable: its letter, or a digest of its longer name.
pub(crate) type Symbol = u64;

/// Named numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Constant {
    Pi,
    E,
    I,
    Infinity,
}

/// Functions with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Function {
    Exp,
    /// The natural logarithm.
    Ln,
    /// A logarithm whose base is not said.
    Log,
    /// Base, number.
    LogBase,
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Asin,
    Acos,
    Atan,
    Acot,
    Asec,
    Acsc,
    Sinh,
    Cosh,
    Tanh,
    Coth,
    Sech,
    Csch,
    Asinh,
    Acosh,
    Atanh,
    Abs,
    Floor,
    Ceil,
    /// Degree, radicand.
    Root,
    Factorial,
    DoubleFactorial,
    /// Of how many, how many.
    Binomial,
    Gcd,
    Lcm,
    Max,
    Min,
    /// From degrees to radians.
    Degrees,
    Re,
    Im,
    Conjugate,
}

/// How two sides stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Approximate,
}

impl Relation {
    /// The same with the sides exchanged.
    pub(crate) fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessEqual => Self::GreaterEqual,
            Self::Greater => Self::Less,
            Self::GreaterEqual => Self::LessEqual,
            other => other,
        }
    }

    pub(crate) fn is_order(self) -> bool {
        matches!(
            self,
            Self::Less | Self::LessEqual | Self::Greater | Self::GreaterEqual
        )
    }

    pub(crate) fn sign(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessEqual => "<=",
            Self::Greater => ">",
            Self::GreaterEqual => ">=",
            Self::Approximate => "~",
        }
    }
}

/// What stands between the items of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Join {
    Comma,
    And,
    Or,
}

/// Brackets around a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bracket {
    Round,
    Square,
    Angle,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Num(Rat),
    Const(Constant),
    Sym(Symbol),
    Sum(Vec<Id>),
    Product(Vec<Id>),
    /// Several letters without a sign between them: a product, a name or a word.
    Letters(Vec<Id>, Symbol),
    Quotient(Id, Id),
    Power(Id, Id),
    Negative(Id),
    Call(Function, Vec<Id>),
    /// A function whose meaning is not known, `f(x)`.
    Apply(Symbol, Vec<Id>),
    /// Plus or minus; `true` for minus or plus.
    PlusMinus(bool, Id),
    /// Digits in another base.
    Based(Rat, u32),
    /// Something with a unit: factor to the base unit, dimension.
    Quantity(Id, Rat, Symbol),
    /// A list without brackets. Order does not matter.
    List(Vec<Id>, Join),
    /// A list in brackets: opening, closing.
    Tuple(Bracket, Bracket, Vec<Id>),
    Set(Vec<Id>),
    Union(Vec<Id>),
    Intersection(Vec<Id>),
    Without(Id, Id),
    /// Rows of equal length, one after another: how many columns.
    Matrix(usize, Vec<Id>),
    /// Sides, and the relations between them.
    Chain(Vec<Id>, Vec<Relation>),
    Member(Id, Id),
    /// Parts, and whether it may be a time of day.
    Ratio(Vec<Id>, bool),
    /// All real numbers and the like, by letter.
    NumberSet(char),
    /// Words.
    Text(Symbol),
}

/// A tree, and the names in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    depths: Vec<u16>,
    /// Longer names, by digest.
    pub(crate) names: Vec<(Symbol, String)>,
    pub(crate) root: Id,
}

/// Most levels of a tree: what walks it calls itself no deeper.
pub(crate) const MAX_DEPTH: u16 = 120;

impl Tree {
    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// Adds a node; none where the tree gets too deep.
    pub(crate) fn push(&mut self, node: Node) -> Option<Id> {
        let mut depth = 0;
        each_child(&node, |child| {
            depth = self.depths[child as usize].max(depth);
        });
        if depth >= MAX_DEPTH {
            return None;
        }
        self.nodes.push(node);
        self.depths.push(depth + 1);
        Some((self.nodes.len() - 1) as Id)
    }

    /// The symbol of a name.
    pub(crate) fn symbol(&mut self, name: &str) -> Symbol {
        let symbol = symbol(name);
        if symbol >> 63 == 1 && !self.names.iter().any(|(known, _)| *known == symbol) {
            self.names.push((symbol, name.to_owned()));
        }
        symbol
    }

    /// The name of a symbol.
    pub(crate) fn name(&self, symbol: Symbol) -> String {
        match char::from_u32(symbol as u32) {
            Some(letter) if symbol >> 63 == 0 => letter.to_string(),
            _ => self
                .names
                .iter()
                .find(|(known, _)| *known == symbol)
                .map_or_else(|| "?".to_owned(), |(_, name)| name.clone()),
        }
    }
}

/// A letter is its own symbol; a longer name a digest of 63 bits (FNV-1a).
pub(crate) fn symbol(name: &str) -> Symbol {
    let mut letters = name.chars();
    if let (Some(letter), None) = (letters.next(), letters.next()) {
        return Symbol::from(u32::from(letter));
    }
    let digest = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    digest | 1 << 63
}

/// Visits the children of a node.
pub(crate) fn each_child(node: &Node, mut visit: impl FnMut(Id)) {
    match node {
        Node::Num(_)
        | Node::Const(_)
        | Node::Sym(_)
        | Node::Based(..)
        | Node::NumberSet(_)
        | Node::Text(_) => {}
        Node::Negative(a) | Node::PlusMinus(_, a) | Node::Quantity(a, ..) => visit(*a),
        Node::Quotient(a, b) | Node::Power(a, b) | Node::Without(a, b) | Node::Member(a, b) => {
            visit(*a);
            visit(*b);
        }
        Node::Sum(all)
        | Node::Product(all)
        | Node::Letters(all, _)
        | Node::Call(_, all)
        | Node::Apply(_, all)
        | Node::List(all, _)
        | Node::Tuple(_, _, all)
        | Node::Set(all)
        | Node::Union(all)
        | Node::Intersection(all)
        | Node::Matrix(_, all)
        | Node::Chain(all, _)
        | Node::Ratio(all, _) => all.iter().copied().for_each(visit),
    }
}
