//! What LaTeX commands and plain words mean.

use super::ast::{Function, Relation};
use super::lex::Tok;

/// What a command or word is to the lexer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Meaning {
    Token(Tok),
    /// Looks only.
    Ignored,
    Space,
    /// `\left` (1) or `\right` (2).
    Side(u8),
    /// Its argument is text.
    Text,
    /// Its argument names a set of numbers.
    NumberSet,
    Begin,
    End,
}

/// Meaning of a command by its name.
pub(crate) fn command(name: &str) -> Option<Meaning> {
    use Meaning::{Begin, End, Ignored, Side, Space, Text, Token};
    if let Some(letter) = greek(name) {
        return Some(Token(Tok::Letter(letter)));
    }
    if let Some(function) = function(name) {
        return Some(Token(Tok::Function(function)));
    }
    let meaning = match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" => Token(Tok::Frac),
        "sqrt" => Token(Tok::Sqrt),
        "binom" | "dbinom" | "tbinom" => Token(Tok::Binom),
        "left" => Side(1),
        "right" => Side(2),
        "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr" | "biggl" | "biggr"
        | "Biggl" | "Biggr" | "middle" | "displaystyle" | "textstyle" | "scriptstyle"
        | "limits" | "nolimits" | "boxed" | "rm" | "bf" | "it" | "mathstrut" | "hfill" => Ignored,
        "quad" | "qquad" | "enspace" | "thinspace" | "medspace" | "thickspace" | "space" => Space,
        "text" | "textbf" | "textit" | "textrm" | "textsf" | "textnormal" | "textup" | "mathrm"
        | "mathbf" | "mathit" | "mathsf" | "mathnormal" | "mbox" | "hbox" | "operatorname"
        | "boldsymbol" | "bm" | "vec" | "overrightarrow" | "mathcal" | "mathfrak" | "mathscr" => {
            Text
        }
        "mathbb" | "Bbb" => Meaning::NumberSet,
        "begin" => Begin,
        "end" => End,
        "times" | "cdot" | "ast" | "cdotp" => Token(Tok::Times),
        "div" => Token(Tok::Slash),
        "pm" => Token(Tok::PlusMinus),
        "mp" => Token(Tok::MinusPlus),
        "infty" | "infin" => Token(Tok::Infinity),
        "le" | "leq" | "leqslant" | "leqq" => Token(Tok::Relation(Relation::LessEqual)),
        "ge" | "geq" | "geqslant" | "geqq" => Token(Tok::Relation(Relation::GreaterEqual)),
        "lt" => Token(Tok::Relation(Relation::Less)),
        "gt" => Token(Tok::Relation(Relation::Greater)),
        "ne" | "neq" => Token(Tok::Relation(Relation::NotEqual)),
        "approx" | "simeq" | "approxeq" => Token(Tok::Relation(Relation::Approximate)),
        "in" => Token(Tok::In),
        "cup" | "bigcup" => Token(Tok::Cup),
        "cap" | "bigcap" => Token(Tok::Cap),
        "setminus" | "smallsetminus" | "backslash" => Token(Tok::SetMinus),
        "emptyset" | "varnothing" => Token(Tok::Empty),
        "circ" | "degree" | "degrees" | "textdegree" => Token(Tok::Degree),
        "prime" => Token(Tok::Prime),
        "mid" | "vert" => Token(Tok::Bar(0)),
        "lvert" => Token(Tok::Bar(1)),
        "rvert" => Token(Tok::Bar(2)),
        "lbrace" => Token(Tok::SetOpen),
        "rbrace" => Token(Tok::SetClose),
        "langle" => Token(Tok::Open('<')),
        "rangle" => Token(Tok::Close('>')),
        "lfloor" => Token(Tok::Open('f')),
        "rfloor" => Token(Tok::Close('f')),
        "lceil" => Token(Tok::Open('c')),
        "rceil" => Token(Tok::Close('c')),
        "lbrack" => Token(Tok::Open('[')),
        "rbrack" => Token(Tok::Close(']')),
        "land" | "wedge" => Token(Tok::And),
        "lor" | "vee" => Token(Tok::Or),
        "euro" => Token(Tok::Currency('\u{20ac}')),
        "pounds" => Token(Tok::Currency('\u{a3}')),
        "yen" => Token(Tok::Currency('\u{a5}')),
        "R" | "reals" => Token(Tok::NumberSet('R')),
        "newline" => Token(Tok::Row),
        _ => return None,
    };
    Some(meaning)
}

/// Meaning of a plain word, or of the words of a text command.
pub(crate) fn word(name: &str) -> Option<Meaning> {
    let token = |tok| Some(Meaning::Token(tok));
    match name {
        "and" => return token(Tok::And),
        "or" => return token(Tok::Or),
        "sqrt" => return token(Tok::Sqrt),
        "pi" => return token(Tok::Letter('\u{3c0}')),
        "oo" | "inf" | "infty" | "infinity" | "Infinity" => return token(Tok::Infinity),
        "percent" | "percentage" | "pct" | "Percent" => return token(Tok::Percent),
        "degrees" | "degree" | "deg" => return token(Tok::Degree),
        _ => {}
    }
    if name.len() < 2 || matches!(name, "Re" | "Im" | "min" | "det") {
        return None;
    }
    if let Some(function) = function(name) {
        return token(Tok::Function(function));
    }
    match name {
        "theta" | "alpha" | "beta" | "lambda" | "omega" | "phi" | "delta" | "epsilon" | "sigma" => {
            token(Tok::Letter(greek(name)?))
        }
        _ => None,
    }
}

/// A function by the name that LaTeX and people give it.
pub(crate) fn function(name: &str) -> Option<Function> {
    use Function as F;
    Some(match name {
        "exp" => F::Exp,
        "ln" => F::Ln,
        "log" => F::Log,
        "sin" => F::Sin,
        "cos" => F::Cos,
        "tan" | "tg" => F::Tan,
        "cot" | "ctg" | "cotg" => F::Cot,
        "sec" => F::Sec,
        "csc" | "cosec" => F::Csc,
        "arcsin" | "asin" => F::Asin,
        "arccos" | "acos" => F::Acos,
        "arctan" | "atan" | "arctg" => F::Atan,
        "arccot" | "acot" | "arcctg" => F::Acot,
        "arcsec" | "asec" => F::Asec,
        "arccsc" | "acsc" => F::Acsc,
        "sinh" => F::Sinh,
        "cosh" => F::Cosh,
        "tanh" => F::Tanh,
        "coth" => F::Coth,
        "sech" => F::Sech,
        "csch" => F::Csch,
        "arcsinh" | "arsinh" | "asinh" => F::Asinh,
        "arccosh" | "arcosh" | "acosh" => F::Acosh,
        "arctanh" | "artanh" | "atanh" => F::Atanh,
        "abs" => F::Abs,
        "floor" => F::Floor,
        "ceil" => F::Ceil,
        "gcd" => F::Gcd,
        "lcm" => F::Lcm,
        "max" => F::Max,
        "min" => F::Min,
        "Re" => F::Re,
        "Im" => F::Im,
        "overline" | "bar" => F::Conjugate,
        _ => return None,
    })
}

fn greek(name: &str) -> Option<char> {
    Some(match name {
        "pi" => '\u{3c0}',
        "alpha" => '\u{3b1}',
        "beta" => '\u{3b2}',
        "gamma" => '\u{3b3}',
        "delta" => '\u{3b4}',
        "epsilon" | "varepsilon" => '\u{3b5}',
        "zeta" => '\u{3b6}',
        "eta" => '\u{3b7}',
        "theta" | "vartheta" => '\u{3b8}',
        "iota" => '\u{3b9}',
        "kappa" => '\u{3ba}',
        "lambda" => '\u{3bb}',
        "mu" => '\u{3bc}',
        "nu" => '\u{3bd}',
        "xi" => '\u{3be}',
        "rho" | "varrho" => '\u{3c1}',
        "sigma" => '\u{3c3}',
        "tau" => '\u{3c4}',
        "phi" | "varphi" => '\u{3c6}',
        "chi" => '\u{3c7}',
        "psi" => '\u{3c8}',
        "omega" => '\u{3c9}',
        "Gamma" => '\u{393}',
        "Delta" | "triangle" => '\u{394}',
        "Theta" => '\u{398}',
        "Lambda" => '\u{39b}',
        "Xi" => '\u{39e}',
        "Pi" => '\u{3a0}',
        "Sigma" => '\u{3a3}',
        "Phi" => '\u{3a6}',
        "Psi" => '\u{3a8}',
        "Omega" => '\u{3a9}',
        "ell" => '\u{2113}',
        "hbar" => '\u{210f}',
        _ => return None,
    })
}
