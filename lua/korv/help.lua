--- Texts for people at the other end of an ssh: what this server is, which endpoints they may call, and how to write what they meant.
-- Knows nothing of channels; lines end in a newline.
-- @module korv.help

local escape = require "korv.escape"
local permissions = require "korv.permissions"

local help = {}

local WORD_BYTES = 60      -- of what a person typed, that is repeated
local RESOURCE_COLUMNS = 40 -- a longer resource pushes its doc aside

local function broken_roles(roles)
  local list = {}
  for i, role in ipairs(roles) do list[i] = escape.broken(role) end
  return list
end

local function described(entry)
  local doc, roles = entry.options and entry.options.doc, entry.options and entry.options.roles
  return {
    verb = entry.verb, resource = escape.broken(entry.resource), doc = doc and escape.broken(doc), parameters = entry.parameters,
    roles = roles and broken_roles(roles),
  }
end

--- The endpoints that a peer may call.
-- @tparam table server
-- @tparam table peer
-- @treturn table a list of `{ verb, resource, doc, parameters, roles }`, sorted by resource, then verb; doc, parameters (a list of names)
-- and roles (a list of those of which a caller needs one) may be nil
function help.endpoints(server, peer)
  local list = {}
  for _, entry in ipairs(server.generation.app.routes:entries()) do
    if permissions.may_call(peer, entry) then list[#list + 1] = described(entry) end
  end
  return list
end

local function beginning_with(list, prefix)
  local found = {}
  for _, endpoint in ipairs(list) do
    if endpoint.resource:sub(1, #prefix) == prefix then found[#found + 1] = endpoint end
  end
  return found
end

local function columns_of(text) return utf8.len(text) or #text end

local function widest_resource(list)
  local widest = 0
  for _, endpoint in ipairs(list) do widest = math.max(widest, columns_of(escape.line(endpoint.resource))) end
  return math.min(widest, RESOURCE_COLUMNS)
end

local function line_of(endpoint, width)
  local resource = escape.line(endpoint.resource)
  local padding = (" "):rep(width - columns_of(resource))
  local doc = escape.line(((endpoint.doc or ""):gsub("%s+", " ")))
  local line = ("  %-6s  %s%s  %s"):format(endpoint.verb, resource, padding, doc)
  return line:match "^.*%S" .. "\n"
end

--- Endpoints in columns: verb, resource, doc.
-- @tparam table list as from `endpoints`
-- @treturn string a line for each
function help.columns(list)
  local lines, width = {}, widest_resource(list)
  for i, endpoint in ipairs(list) do lines[i] = line_of(endpoint, width) end
  return table.concat(lines)
end

local SYNOPSIS = [[
usage: ssh HOST VERB RESOURCE [BODY]    VERB is GET, STORE, UPDATE or DELETE
       ssh HOST help [RESOURCE]
]]

local GUIDE = [[

  ssh HOST VERB RESOURCE [BODY]    calls an endpoint; VERB is GET, STORE, UPDATE or DELETE
  ssh HOST help [RESOURCE]         says this, or lists the endpoints that begin with RESOURCE

BODY is JSON. Your shell wants it in single quotes; STORE and UPDATE without one read it from the input, others if it is a `-`:

  ssh HOST GET '/search?q=lua&limit=10'
  ssh HOST STORE /users/ann '{"age": 7}'
  echo '{"age": 7}' | ssh HOST STORE /users/ann

What is not a success goes to stderr, as in `404 null`, and the exit status is the first digit of its code.

]]

local function identity_of(peer)
  local name = escape.line(peer.name or "")
  return name == "" and peer.fingerprint or ("%s (%s)"):format(name, peer.fingerprint)
end

--- What `ssh HOST help` prints.
-- @tparam table server
-- @tparam table peer
-- @treturn string
function help.guide(server, peer)
  local list = help.endpoints(server, peer)
  return ("This is a korv server: endpoints that are called over SSH. You are %s.\n"):format(identity_of(peer)) .. GUIDE ..
    ("You may call %d endpoint%s:\n\n"):format(#list, #list == 1 and "" or "s") .. help.columns(list)
end

--- What `ssh HOST help /users` prints.
-- @tparam table server
-- @tparam table peer
-- @tparam string prefix
-- @treturn ?string nil where no endpoint begins so
-- @treturn ?string a message
function help.about(server, peer, prefix)
  local found = beginning_with(help.endpoints(server, peer), prefix)
  if #found == 0 then return nil, ("no endpoint begins with %s: help lists all"):format(help.quoted(prefix)) end
  return help.columns(found)
end

--- Something that a person typed, short and safe to show.
-- @tparam string text
-- @treturn string
function help.quoted(text)
  local shown = #text > WORD_BYTES and text:sub(1, WORD_BYTES) .. "…" or text
  return "'" .. escape.line(shown) .. "'"
end

local VERBS = { GET = true, STORE = true, UPDATE = true, DELETE = true }
local FOREIGN = { POST = "STORE", PUT = "UPDATE", PATCH = "UPDATE", HEAD = "GET" }

--- What to write in place of a verb that there is not.
-- @tparam string verb in upper case
-- @treturn ?string nil: it is one
-- @treturn ?string a verb that is near, where there is any
function help.odd_verb(verb)
  if VERBS[verb] then return nil end
  local instead = FOREIGN[verb]
  local mend = instead and ("; did you mean %s?"):format(instead) or ""
  return ("%s is no verb: GET, STORE, UPDATE or DELETE%s"):format(help.quoted(verb), mend), instead
end

--- What to write in place of a resource that is none.
-- @tparam string resource
-- @treturn ?string nil: it may be one
function help.odd_resource(resource)
  if resource:sub(1, 1) == "/" then return nil end
  return ("%s does not begin with '/': did you mean %s?"):format(help.quoted(resource), help.quoted("/" .. resource))
end

--- What is printed where a command was not understood.
-- @tparam string problem
-- @treturn string
function help.usage(problem) return ("korv: %s\n%s"):format(problem, SYNOPSIS) end

return help
