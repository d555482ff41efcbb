"""What the routes take and answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """The base of the answers, which are made of rows."""

    model_config = ConfigDict(from_attributes=True)


class AuthorOut(Answer):
    """An author."""

    id: int
    email: str
    name: str


class TagOut(Answer):
    """A tag."""

    id: int
    name: str


class CommentOut(Answer):
    """A comment."""

    id: int
    post_id: int
    reader: str
    text: str


class PostOut(Answer):
    """A post with its author and its tags."""

    id: int
    title: str
    body: str
    author: AuthorOut
    tags: list[TagOut]


class Headline(Answer):
    """A post as a line of a list."""

    id: int
    title: str
    author_id: int


class PostPage(Answer):
    """All that a page about one post shows."""

    post: PostOut
    comments: list[CommentOut]
    posts_of_author: int


class AuthorIn(BaseModel):
    """A new author."""

    email: str = Field(max_length=255)
    name: str = Field(max_length=100)


class PostIn(BaseModel):
    """A new post."""

    author_id: int
    title: str = Field(max_length=200)
    body: str
    tags: list[str] = []


class CommentIn(BaseModel):
    """A new comment."""

    reader: str = Field(max_length=100)
    text: str
