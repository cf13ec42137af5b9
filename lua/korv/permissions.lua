--- Who may call what: an endpoint may ask for roles, and a key may be locked to some endpoints. Knows no request but its verb, resource and
-- peer, and asks nothing of an app.
-- @module korv.permissions

local router = require "korv.router"

local permissions = {}

local function is_locked_out(only, verb, path)
  for _, one in ipairs(only) do
    if (one.verb == "*" or one.verb == verb) and path:find(one.pattern) then return false end
  end
  return true
end

--- Whether a peer has one of some roles.
-- @tparam ?table peer
-- @tparam {string,...} roles
-- @treturn boolean
function permissions.has_role(peer, roles)
  for _, own in ipairs(peer and peer.roles or {}) do
    for _, role in ipairs(roles) do
      if own == role then return true end
    end
  end
  return false
end

--- Whether a key that is locked to some endpoints may send a request. A path that is written in another way, with `%2e` say, is another
-- resource to the lock as it is to the router's literals.
-- @tparam table only what `korv.keyoptions` made of `command=`
-- @tparam table request
-- @treturn boolean
function permissions.unlocked(only, request)
  local path = router.split(request.resource)
  return not is_locked_out(only, request.verb, path)
end

-- A resource with parameters as a pattern's text may meet it: whether some resource matches both.
local function may_meet(one, entry)
  if not entry.parameters then return entry.resource:find(one.pattern) ~= nil end
  local head = entry.resource:match "^[^:*]*"
  local literal = one.resource:match "^[^*?]*"
  local shorter = math.min(#head, #literal)
  return head:sub(1, shorter) == literal:sub(1, shorter)
end

--- Whether a peer may call an endpoint, or some of the resources that it answers.
-- @tparam ?table peer
-- @tparam table entry the router's
-- @treturn boolean
function permissions.may_call(peer, entry)
  local roles = entry.options and entry.options.roles
  if roles and not permissions.has_role(peer, roles) then return false end
  if not (peer and peer.only) then return true end
  for _, one in ipairs(peer.only) do
    if (one.verb == "*" or one.verb == entry.verb) and may_meet(one, entry) then return true end
  end
  return false
end

return permissions
