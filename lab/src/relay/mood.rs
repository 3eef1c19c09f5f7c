//! How a relay answers the next mails.

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
    /// Stores the mail, then closes the connection without an answer.
    DropsAfterData,
    /// Never answers RCPT.
    StallsAtRecipient,
    /// Answers RCPT only after the relay's mood has changed.
    HoldsAtRecipient,
    /// Answers one message in this many after 30 s, longer than a conversation may take.
    HoldsOneIn(usize),
    /// Answers the message with 354, which is no acceptance, but which lettre takes for one.
    SaysMoreAfterData,
    /// Sends its greeting this long after the connection was made.
    GreetsLate(Duration),
    /// Never greets new connections.
    GreetsNobody,
    /// After a mail was accepted on a connection: answers the given command with the given reply,
    /// then closes the connection. The command "." is the end of a message.
    TiresAt(&'static str, &'static str),
}
