--- Who may call what: an endpoint may ask for roles, and a key may be locked to some endpoints. Knows no request but its verb, resource and
-- peer, and asks nothing of an app.
-- @module korv.permissions

local router = require "korv.router"

local permissions = {}

local PATH_BYTES = 65536 -- no app answers a longer one

-- A `.` or `..` among the segments, however it is written: an endpoint that makes a path of its parameters would leave the lock's folder.
local function climbs(path)
  return ("/" .. router.decode(path) .. "/"):find "/%.%.?/" ~= nil
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
  if #path > PATH_BYTES or climbs(path) then return false end
  for _, one in ipairs(only) do
    if (one.verb == "*" or one.verb == request.verb) and one.matches(path) then return true end
  end
  return false
end

-- What stands for one character (star: for any number of them) in a resource of the router's, and in a lock.
local ANY, ANYTHING, PART, PARTS = {}, { star = true }, { no_slash = true }, { no_slash = true, star = true }
local WILD = { ["?"] = ANY, ["*"] = ANYTHING }

local function tokens_of_lock(text)
  local list = {}
  for char in text:gmatch "." do list[#list + 1] = WILD[char] or { char = char } end
  return list
end

local BRANCHES = { [":"] = { PART, PARTS }, ["*"] = { ANY, ANYTHING } }

local function tokens_of_resource(text)
  local list = {}
  for segment in text:gmatch "/([^/]*)" do
    list[#list + 1] = { char = "/" }
    local branch = BRANCHES[segment:sub(1, 1)]
    for char in (branch and "" or segment):gmatch "." do list[#list + 1] = { char = char } end
    if branch then table.move(branch, 1, 2, #list + 1, list) end
  end
  return list
end

local function agree(a, b)
  if a.char and b.char then return a.char == b.char end
  return not (a.char == "/" and b.no_slash or b.char == "/" and a.no_slash)
end

-- Whether some text is both what the one list of tokens stands for and what the other does.
local function meet(a, b)
  local seen = {}
  local function from(i, j)
    local x, y, key = a[i], b[j], i << 32 | j
    if seen[key] then return false end
    seen[key] = true
    if not x and not y then return true end
    return x and x.star and from(i + 1, j) or y and y.star and from(i, j + 1) or x and y and agree(x, y) and
      from(x.star and i or i + 1, y.star and j or j + 1)
  end
  return from(1, 1) or false
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
    if (one.verb == "*" or one.verb == entry.verb) and meet(tokens_of_lock(one.resource), tokens_of_resource(entry.resource)) then
      return true
    end
  end
  return false
end

return permissions
