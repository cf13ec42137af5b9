/* For analyzers, which scripts/lint has read this first: functions of the libraries that never return, though their headers do not say so. */
struct lua_State;
extern int luaL_error(struct lua_State *L, const char *format, ...) __attribute__((noreturn));
extern int luaL_argerror(struct lua_State *L, int argument, const char *message) __attribute__((noreturn));
extern int luaL_typeerror(struct lua_State *L, int argument, const char *name) __attribute__((noreturn));
extern int lua_error(struct lua_State *L) __attribute__((noreturn));
