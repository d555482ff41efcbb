"""The queries and the writes of the blog. Each query is cached; each write is plain SQLAlchemy.

No write has a decorator or a list of keys: the cache reads in the statements which answers each commit changes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Author, Comment, Post, Tag, post_tags
from fastrdb.demo.blog.repository import PAGE, Repo
from fastrdb.demo.blog.schemas import AuthorIn, AuthorOut, CommentIn, CommentOut, Headline, PostIn, PostOut, TagOut


class Authors(Repo[Author, AuthorOut]):
    """The authors of a tenant."""


class Tags(Repo[Tag, TagOut]):
    """The tags of a tenant."""


class Posts(Repo[Post, PostOut]):
    """The posts of a tenant, each with its author and its tags."""

    options = (selectinload(Post.author), selectinload(Post.tags))


class Blog:
    """One tenant's blog, for one request.

    Args:
        db: the session of the request.
        tenant: from the login. All keys have it.
    """

    def __init__(self, db: AsyncSession, tenant: int) -> None:
        self.db, self.tenant = db, tenant
        self.authors, self.posts, self.tags = Authors(db, tenant), Posts(db, tenant), Tags(db, tenant)

    # --- queries

    @cache.cached_list("{self.tenant}:author:{author_id}:posts:{page}", exp=600, schema=Headline)
    async def posts_of(self, author_id: int, page: int = 1) -> list[Post]:
        """Return one page of an author's posts, the newest first."""
        return list(await self.db.scalars(self._headlines(page).where(Post.author_id == author_id)))

    @cache.cached_list("{self.tenant}:tag:{tag}:posts:{page}", exp=600, schema=Headline)
    async def posts_with(self, tag: str, page: int = 1) -> list[Post]:
        """Return one page of the posts with a tag, the newest first."""
        tagged = select(post_tags.c.post_id).join(Tag).where(Tag.name == tag, Tag.tenant_id == self.tenant)
        return list(await self.db.scalars(self._headlines(page).where(Post.id.in_(tagged))))

    @cache.cached_list("{self.tenant}:post:{post_id}:comments", exp=600, schema=CommentOut)
    async def comments_on(self, post_id: int) -> list[Comment]:
        """Return the comments on a post, the oldest first."""
        query = select(Comment).where(Comment.post_id == post_id, Comment.tenant_id == self.tenant)
        return list(await self.db.scalars(query.order_by(Comment.id)))

    @cache.cached("{self.tenant}:author:{author_id}:count", exp=600)
    async def count_of(self, author_id: int) -> int:
        """Return the number of an author's posts."""
        query = select(func.count()).select_from(Post).where(Post.author_id == author_id)
        return (await self.db.scalars(query.where(Post.tenant_id == self.tenant))).one()

    def _headlines(self, page: int) -> Select[Any]:
        query = select(Post).where(Post.tenant_id == self.tenant).order_by(Post.id.desc())
        return query.limit(PAGE).offset(PAGE * (page - 1))

    # --- writes

    async def add_author(self, given: AuthorIn) -> AuthorOut:
        """Insert an author. Raises IntegrityError for an e-mail address that the tenant has already."""
        author = Author(tenant_id=self.tenant, **given.model_dump())
        self.db.add(author)
        await self.db.commit()
        return AuthorOut.model_validate(author)

    async def rename_author(self, author_id: int, name: str) -> AuthorOut:
        """Change an author's name, which each of the author's posts shows. Raises NoResultFound."""
        author = await self.authors.row(author_id)
        author.name = name
        await self.db.commit()
        return AuthorOut.model_validate(author)

    async def delete_author(self, author_id: int) -> None:
        """Delete an author. The database deletes posts, comments and tags of posts. Raises NoResultFound."""
        await self.db.delete(await self.authors.row(author_id))
        await self.db.commit()

    async def write_post(self, given: PostIn) -> PostOut:
        """Insert a post, with tags that may be new. Raises NoResultFound for an author of another tenant."""
        author = await self.authors.row(given.author_id)
        post = Post(tenant_id=self.tenant, author=author, title=given.title, body=given.body)
        post.tags = await self._tags(given.tags)
        self.db.add(post)
        await self.db.commit()
        return PostOut.model_validate(post)

    async def tag_post(self, post_id: int, tags: list[str]) -> PostOut:
        """Replace the tags of a post. Raises NoResultFound."""
        post = await self.posts.row(post_id, *Posts.options)
        post.tags = await self._tags(tags)
        await self.db.commit()
        return PostOut.model_validate(post)

    async def hand_over(self, author_id: int, to: int) -> int:
        """Hand all posts of an author to another one, in one statement. Return their number. Raises NoResultFound."""
        await self.authors.row(to)
        mine = update(Post).where(Post.author_id == author_id, Post.tenant_id == self.tenant)
        changed = await self.db.execute(mine.values(author_id=to))
        await self.db.commit()
        return int(changed.rowcount)  # type: ignore[attr-defined]

    async def delete_post(self, post_id: int) -> int:
        """Delete a post by a statement. The database deletes comments and tags of the post. Return 0 for no post."""
        deleted = await self.db.execute(delete(Post).where(Post.id == post_id, Post.tenant_id == self.tenant))
        await self.db.commit()
        return int(deleted.rowcount)  # type: ignore[attr-defined]

    async def comment(self, post_id: int, given: CommentIn) -> CommentOut:
        """Insert a comment. Raises NoResultFound for a post of another tenant."""
        await self.posts.row(post_id)
        comment = Comment(tenant_id=self.tenant, post_id=post_id, **given.model_dump())
        self.db.add(comment)
        await self.db.commit()
        return CommentOut.model_validate(comment)

    async def _tags(self, names: list[str]) -> list[Tag]:
        query = select(Tag).where(Tag.tenant_id == self.tenant, Tag.name.in_(names))
        found = {tag.name: tag for tag in await self.db.scalars(query)}
        return [found.get(name) or Tag(tenant_id=self.tenant, name=name) for name in dict.fromkeys(names)]
