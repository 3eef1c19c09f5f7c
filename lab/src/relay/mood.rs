//! What a relay does with the next mails.

use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Takes,
    /// Answers MAIL with this.
    RefusesSender(&'static str),
    /// Answers RCPT with this.
    RefusesRecipient(&'static str),
    /// Answers DATA with this.
    RefusesData(&'static str),
    /// Answers the message with this.
    RefusesMessage(&'static str),
    /// Keeps the mail, then drops the connection before it has answered.
    DropsAfterData,
    /// Never answers RCPT.
    StallsAtRecipient,
    /// Answers RCPT when its mood has changed.
    HoldsAtRecipient,
    /// Answers one message in so many after 30 s, which is longer than a conversation may take.
    HoldsOneIn(usize),
    /// Answers the dot with a code that is no yes, but that lettre takes for one.
    SaysMoreAfterData,
    /// Greets so long after it was connected to.
    GreetsLate(Duration),
    /// Never greets who connects now.
    GreetsNobody,
    /// Answers this command so, if a mail was taken on the connection, and closes it; "." is the message's end.
    TiresAt(&'static str, &'static str),
}
