"""The tutorial's schemas: what comes in, and what goes out."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, EmailStr


class UserCreate(BaseModel):
    """A new user."""

    email: EmailStr
    name: str
    bio: str | None = None
    is_active: bool = True


class UserUpdate(BaseModel):
    """Fields to change; a field that is not given stays."""

    email: EmailStr | None = None
    name: str | None = None
    bio: str | None = None
    is_active: bool | None = None


class UserResponse(BaseModel):
    """A user as the application answers."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    bio: str | None = None
    is_active: bool
    created_at: datetime
    updated_at: datetime
