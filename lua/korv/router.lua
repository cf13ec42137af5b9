--- Which endpoint answers a verb and a resource. The resources with parameters of one verb form a tree, a level for each segment;
-- those without are keys of one table. Knows nothing of requests, middleware or codes, and of an endpoint only that it can be called.
-- @module korv.router

local router = {}

local Router = {}
Router.__index = Router

local VERBS = { GET = true, STORE = true, UPDATE = true, DELETE = true }
local SLASH = ("/"):byte()
local BRANCH = { [":"] = "parameter", ["*"] = "rest" } -- what a segment that begins so is in the tree

-- Every way to write a byte in two hex digits, so that decoding calls no function for each.
local DECODED = {}
for code = 0, 255 do
  local digits = ("%02x"):format(code)
  local high, low = digits:sub(1, 1), digits:sub(2)
  for _, spelling in ipairs { digits, digits:upper(), high:upper() .. low, high .. low:upper() } do
    DECODED[spelling] = string.char(code)
  end
end

--- A text without its percent-encoding; a `%` without two hex digits stays.
-- @tparam string text
-- @treturn string
function router.decode(text)
  if not text:find("%", 1, true) then return text end
  return (text:gsub("%%(%x%x)", DECODED))
end

local decode = router.decode

--- Where a function is defined.
-- @tparam function fn a function, or a table that can be called
-- @treturn string `file:line`, or `[C]`
function router.where(fn)
  if type(fn) ~= "function" then fn = getmetatable(fn).__call end
  if type(fn) ~= "function" then return "?" end
  local info = debug.getinfo(fn, "S")
  if info.what == "C" then return "[C]" end
  local file = info.source:match("^@(.*)") or info.short_src
  return file .. ":" .. info.linedefined
end

--- Whether a value can be called.
-- @param value anything
-- @treturn boolean
function router.callable(value)
  if type(value) == "function" then return true end
  local meta = getmetatable(value)
  return type(meta) == "table" and meta.__call ~= nil
end

--- The resource without its query, and the query.
-- @tparam string resource as the client sent it
-- @treturn string the path
-- @treturn ?string what is behind the first `?`; nil where there is none
function router.split(resource)
  local mark = resource:find("?", 1, true)
  if not mark then return resource, nil end
  return resource:sub(1, mark - 1), resource:sub(mark + 1)
end

local function decode_query(text) return decode((text:gsub("+", " "))) end

--- The names and values of a query. Both are percent-decoded and `+` is a space; of several values of one name the last one
-- counts, and a name without `=` has the value `""`.
-- @tparam string text what is behind the `?`
-- @treturn table names to strings
function router.query(text)
  local values = {}
  for piece in text:gmatch("[^&]+") do
    local name, value = piece:match("^([^=]*)=(.*)$")
    values[decode_query(name or piece)] = decode_query(value or "")
  end
  return values
end

--- A router without endpoints.
-- @treturn Router
function router.new()
  local self = setmetatable({ literals = {}, trees = {} }, Router)
  for verb in pairs(VERBS) do
    self.literals[verb], self.trees[verb] = {}, { literals = {} }
  end
  return self
end

local function misnamed(segment, seen)
  local name = segment:sub(2)
  if name == "" then return ("'%s' has no name: write '%sname'"):format(segment, segment) end
  if not name:find("^[%a_][%w_]*$") then
    return ("'%s' takes a whole segment; its name is letters, digits and _, and begins with no digit"):format(segment)
  end
  if seen[name] then return ("two parameters are named '%s': give each its own name"):format(name) end
  seen[name] = true
end

-- The segments of a resource and the names of its parameters, nil where it has none; or nil and what is wrong with it.
local function parse(resource)
  local segments, names, seen, rest = {}, {}, {}, nil
  for segment in resource:gmatch("/([^/]*)") do
    if rest then return nil, ("'%s' takes all the rest, so nothing can follow it"):format(rest) end
    if BRANCH[segment:sub(1, 1)] then
      local wrong = misnamed(segment, seen)
      if wrong then return nil, wrong end
      names[#names + 1] = segment:sub(2)
      if segment:sub(1, 1) == "*" then rest = segment end
    end
    segments[#segments + 1] = segment
  end
  return segments, #names > 0 and names or nil
end

local function misuse(verb, resource, endpoint)
  if not VERBS[verb] then return ("unknown verb %s: a verb is GET, STORE, UPDATE or DELETE"):format(tostring(verb)) end
  if type(resource) ~= "string" or resource:byte() ~= SLASH then
    local got = type(resource) == "string" and "'" .. resource .. "'" or "a " .. type(resource)
    return ("%s: a resource is a string that begins with '/' (got %s)"):format(verb, got)
  end
  if resource:find("?", 1, true) then
    return ("%s %s: register the resource without its query; what is behind '?' ends up in request.query"):format(verb, resource)
  end
  if not router.callable(endpoint) then
    return ("%s %s: the endpoint, the last argument, must be a function (got a %s)"):format(verb, resource, type(endpoint))
  end
end

local function descend(node, segment)
  local branch = BRANCH[segment:sub(1, 1)]
  local home, key = node, branch
  if not branch then home, key = node.literals, segment end
  home[key] = home[key] or { literals = {} }
  return home[key]
end

-- The table and the key where the entry of a verb and a resource belongs.
local function place(self, verb, resource, segments, has_parameters)
  if not has_parameters then return self.literals[verb], resource end
  local node = self.trees[verb]
  for _, segment in ipairs(segments) do node = descend(node, segment) end
  return node, "entry"
end

--- Registers an endpoint. Raises on misuse, and where the verb and resource have an endpoint already, be it under other
-- parameter names.
-- @tparam string verb `GET`, `STORE`, `UPDATE` or `DELETE`
-- @tparam string resource begins with `/`; a segment `:name` matches any one, a last segment `*name` all the rest
-- @tparam function endpoint what answers
-- @param[opt] options kept in the entry
-- @tparam[opt=1] int level whose mistake an error is, as in `error`
-- @treturn table the entry: `verb resource endpoint options where parameters`; the last one is a list of names, nil where there are none
function Router:add(verb, resource, endpoint, options, level)
  level = (level or 1) + 1
  local wrong = misuse(verb, resource, endpoint)
  if wrong then error(wrong, level) end
  local segments, names = parse(resource)
  if not segments then error(("%s %s: %s"):format(verb, resource, names), level) end
  local where = router.where(endpoint)
  local home, key = place(self, verb, resource, segments, names)
  local first = home[key]
  if first then
    error(("%s %s (%s) is registered already, as %s (%s): remove one of them"):format(verb, resource, where, first.resource, first.where),
      level)
  end
  home[key] = { verb = verb, resource = resource, endpoint = endpoint, options = options, where = where, parameters = names }
  return home[key]
end

-- The entry for what is left of a resource from `from` on (nil: nothing is), and in values[1 … n] what its parameters matched. A node
-- is visited once at most, so the work is bounded by what is registered, however the resource is made.
local function walk(node, resource, from, values, n)
  if not from then return node.entry end
  local slash = resource:find("/", from, true)
  local segment = resource:sub(from, slash and slash - 1)
  local behind = slash and slash + 1
  local literal = node.literals[segment]
  local entry = literal and walk(literal, resource, behind, values, n)
  if not entry and node.parameter and segment ~= "" then
    values[n + 1] = segment
    entry = walk(node.parameter, resource, behind, values, n + 1)
  end
  if not entry and node.rest and from <= #resource then
    values[n + 1] = resource:sub(from)
    entry = node.rest.entry
  end
  return entry
end

--- Finds the endpoint for a resource. Segment by segment from the left, a literal goes before a parameter, and that before the
-- rest. A parameter matches one segment, the rest any number of them, neither an empty text. Their values are percent-decoded (a
-- `%` without two hex digits stays); literals compare as they stand.
-- @tparam string verb any
-- @tparam string resource without its query
-- @treturn ?table the entry, nil where there is none
-- @treturn ?table the parameters, nil where the entry has none
function Router:match(verb, resource)
  local literals = self.literals[verb]
  if not literals then return nil end
  local entry = literals[resource]
  if entry then return entry end
  if resource:byte() ~= SLASH then return nil end
  local values = {}
  entry = walk(self.trees[verb], resource, 2, values, 0)
  if not entry then return nil end
  local params = {}
  for i, name in ipairs(entry.parameters) do params[name] = decode(values[i]) end
  return entry, params
end

local function gather(list, node)
  list[#list + 1] = node.entry
  for _, child in pairs(node.literals) do gather(list, child) end
  if node.parameter then gather(list, node.parameter) end
  if node.rest then gather(list, node.rest) end
end

--- All that is registered, in no order: sorting many takes longer than answering a request.
-- @treturn table a list of entries
function Router:all()
  local list = {}
  for verb in pairs(VERBS) do
    for _, entry in pairs(self.literals[verb]) do list[#list + 1] = entry end
    gather(list, self.trees[verb])
  end
  return list
end

--- All that is registered.
-- @treturn table a list of entries, sorted by resource, then verb
function Router:entries()
  local list = self:all()
  table.sort(list, function(a, b)
    if a.resource ~= b.resource then return a.resource < b.resource end
    return a.verb < b.verb
  end)
  return list
end

return router
