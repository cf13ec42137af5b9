--- The environments that one generation of endpoint scripts is loaded into, one for each folder of scripts. What lies beside a script is
-- loaded afresh, once for its folder; installed modules, those in C and korv itself are shared with everybody. An environment reads what
-- the program's globals were and keeps its own. Knows no app, and not when a generation begins or ends.
-- @module korv.modules

local log = require "korv.log"
local uv = require "luv"

local modules = {}

local Modules = {}
Modules.__index = Modules

-- These are never looked for beside a script.
local RESERVED = { luv = true, cjson = true, ["cjson.safe"] = true, korv = true }
for name, value in pairs(_G) do
  if type(value) == "table" and package.loaded[name] == value then RESERVED[name] = true end
end

local function is_reserved(name) return RESERVED[name] or name:find "^korv%." ~= nil end

--- No environments yet.
-- @tparam[opt] table adapt names of shared modules to functions that are given the module and return what `require` is to return
-- @treturn Modules with `files`, a list of what was loaded or looked for beside the scripts, and `sources`, a set of the sources of all
-- code that was loaded, as `debug.getinfo` has them; nil once `settle` was called
function modules.new(adapt)
  return setmetatable({ adapt = adapt or {}, places = {}, files = {}, sources = {}, known = {} }, Modules)
end

--- Has the sources kept no longer: all is loaded.
-- @tparam[opt] function required called when a module beside the scripts is required later, which adds to `files`
function Modules:settle(required) self.sources, self.required = nil, required end

function Modules:looked_for(path)
  if self.known[path] then return end
  self.known[path] = true
  self.files[#self.files + 1] = path
end

function Modules:has_source(source)
  if self.sources then self.sources[source] = true end
end

-- A file as a function in an environment, or nil and what is wrong with it.
local function open(self, path, mode, env)
  self:looked_for(path)
  self:has_source("@" .. path)
  return loadfile(path, mode, env)
end

-- load, loadfile and dofile, which would write the program's globals otherwise.
local function add_loaders(self, env)
  function env.load(chunk, name, mode, ...)
    self:has_source(name or type(chunk) == "string" and chunk or "=(load)")
    if select("#", ...) == 0 then return load(chunk, name, mode, env) end
    return load(chunk, name, mode, (...))
  end

  function env.loadfile(path, mode, ...)
    local own = env
    if select("#", ...) > 0 then own = ... end
    if path == nil then return loadfile(nil, mode, own) end
    return open(self, path, mode, own)
  end

  function env.dofile(path)
    local chunk, problem = env.loadfile(path)
    if not chunk then error(problem, 0) end
    return chunk()
  end
end

-- The file of a module that is the generation's own: beside the scripts, or on what a script has added to package.path.
local function find_own(self, place, name)
  local step = name:gsub("%.", "/")
  for _, rest in ipairs { ".lua", "/init.lua" } do
    local path = place.folder .. "/" .. step .. rest
    self:looked_for(path)
    if uv.fs_access(path, "R") then return path end
  end
  local path = place.env.package.path
  if path == package.path then return nil end
  local found = package.searchpath(name, path)
  if found ~= package.searchpath(name, package.path) then return found end
end

-- The modules that are being loaded in this coroutine, the outermost first.
local function chain_of(place)
  local co = coroutine.running()
  local chain = place.chains[co] or { names = {}, paths = {} }
  place.chains[co] = chain
  return chain
end

local HERE = debug.getinfo(1, "S").source

-- An error at the line that called `require`, which is two levels up. Where that call was the module's last act, only its file is known.
local function fail(chain, message)
  local path, caller = chain.paths[#chain.paths], debug.getinfo(4, "S")
  if caller and caller.source ~= HERE then error(message, 4) end
  error(path and path .. ": " .. message or message, 0)
end

local function check_loop(chain, name)
  for i, other in ipairs(chain.names) do
    if other == name then fail(chain, ("loop: %s -> %s"):format(table.concat(chain.names, " -> ", i), name)) end
  end
end

-- The link goes from the chain however this ends: a coroutine that is cancelled here is used again.
local function run_module(place, name, chunk, path)
  local chain = chain_of(place)
  local names, paths = chain.names, chain.paths
  local n = #names + 1
  names[n], paths[n] = name, path
  local link <close> = setmetatable({}, { __close = function() names[n], paths[n] = nil, nil end }) -- luacheck: ignore 211
  local value = chunk(name, path)
  local loaded = place.loaded
  if value ~= nil then loaded[name] = value end
  if rawget(loaded, name) == nil then loaded[name] = true end
  return loaded[name], path
end

-- The stock require cannot be told apart by its stack: what it raises has gone through C.
local function require_shared(self, place, name)
  local stack
  local ok, value, path = xpcall(require, function(problem)
    stack = debug.traceback(nil, 2)
    return problem
  end, name)
  if ok then
    local adapt = self.adapt[name]
    if not adapt then return value, path end
    place.loaded[name] = adapt(value)
    return place.loaded[name], path
  end
  if type(value) == "string" and value:find(("module '%s' not found:"):format(name), 1, true) == 1 then
    fail(chain_of(place), ("module '%s' not found, neither beside the script (%s/) nor on Lua's path"):format(name, place.folder))
  end
  log.debug("the module '%s' failed: %s\n%s", name, tostring(value), stack)
  error(value, 0)
end

-- A module of the generation's own as a function, and its file; nil where there is none.
local function open_own(self, place, name)
  local made = rawget(place.env.package.preload, name)
  if made then return made, ":preload:" end
  local path = not is_reserved(name) and find_own(self, place, name)
  if not path then return nil end
  local chunk, problem = open(self, path, "t", place.env)
  if self.required then self.required() end
  if not chunk then error(problem, 0) end
  return chunk, path
end

local function add_require(self, place)
  function place.env.require(name)
    if type(name) ~= "string" then error(("require: the name of a module is a string (got a %s)"):format(type(name)), 2) end
    place.required[name] = true
    local value = rawget(place.loaded, name)
    if value then return value end
    check_loop(chain_of(place), name)
    local chunk, path = open_own(self, place, name)
    if chunk then
      value, path = run_module(place, name, chunk, path)
    else
      value, path = require_shared(self, place, name)
    end
    return value, path
  end
end

-- `loaded` and `preload` read what everybody has and keep what is written; `path` is the folder's own; the rest is everybody's.
local function own_package(place)
  return setmetatable({
    loaded = place.loaded, path = package.path, preload = setmetatable({}, { __index = package.preload }),
  }, { __index = package, __newindex = package })
end

local function new_place(self, folder)
  local env = {}
  for name, value in pairs(_G) do env[name] = value end
  local place = { folder = folder, env = env, required = {}, chains = setmetatable({}, { __mode = "k" }) }
  place.loaded = setmetatable({ _G = env }, { __index = package.loaded })
  env._G = env
  env.package = own_package(place)
  place.loaded.package = env.package
  add_loaders(self, env)
  add_require(self, place)
  return place
end

local function place_of(self, path)
  local folder = path:match "^(.*)/[^/]*$" or "."
  local key = uv.fs_realpath(folder) or folder
  self.places[key] = self.places[key] or new_place(self, folder)
  return self.places[key]
end

--- A script as a function, in the environment of its folder.
-- @tparam string path
-- @treturn ?function
-- @treturn ?string message with file and line
function Modules:script(path) return open(self, path, "t", place_of(self, path).env) end

-- The name under which others of the folder may require a file; nil where they cannot.
local function name_of(path)
  local name = path:match "([^/]+)%.lua$"
  if name and not name:find(".", 1, true) and not is_reserved(name) then return name end
end

--- Runs a file of a folder that is served: a script, or a module of the others. It runs once, though it is required as well.
-- @tparam string path
-- @return what it returned; raises what it raises, or what is wrong with it
function Modules:run(path)
  local place, name = place_of(self, path), name_of(path)
  if name and rawget(place.loaded, name) ~= nil then return place.loaded[name] end
  local chunk, problem = self:script(path)
  if not chunk then error(problem, 0) end
  if not name then return chunk() end
  return (run_module(place, name, chunk, path))
end

--- Whether a file that was run is a module of the others: one of them has required it.
-- @tparam string path
-- @treturn boolean
function Modules:is_required(path) return place_of(self, path).required[name_of(path) or ""] == true end

return modules
